"""The rule `integrated`: gradients averaged along a path (Sundararajan et al., 2017, arXiv:1703.01365).

On the path, one layer's write goes at all tokens from what replaces it, zero by default, to its value. The
gradient is averaged over the midpoints of equal parts of the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.gradient import LayerScores, Rule, changes_of, last_tokens_only, products_BT
from lit_attr.attribution.passes import Answers, answers_of, difference_B, gradients_of, last_logits_BV
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import first_tensor, outputs_changed, recorded, replace_first
from lit_attr.models.location import Location


@dataclass(frozen=True)
class Integrated(Rule):
    """Change × mean gradient on the path from the replaced write.

    Attributes:
        steps: The number of gradients that are averaged.
    """

    name: ClassVar[RuleName] = "integrated"
    steps: int = 8

    def scores(
        self,
        model: PreTrainedModel,
        location: Location,
        batch: ContrastBatch,
        replacement_BLTH: Tensor | None = None,
    ) -> tuple[Sequence[LayerScores], Answers]:
        """Each layer's products of change and mean gradient."""
        with last_tokens_only(model, location, batch):
            with torch.no_grad(), recorded(location.modules) as activations:
                answers = answers_of(last_logits_BV(model, batch), batch)
            changes = changes_of(activations, replacement_BLTH)
            scores: list[LayerScores] = []
            for module, change in zip(location.modules, changes, strict=True):
                mean = torch.zeros_like(change)
                for step in range(self.steps):
                    # The write less the part of the change that is missing to it.
                    missing = change * (1 - (step + 0.5) / self.steps)

                    def go_back(_: int, output: Any, missing: Tensor = missing) -> Any:
                        write = first_tensor(output)
                        return replace_first(output, write - missing.to(write))

                    with outputs_changed([module], go_back), recorded([module]) as writes:
                        difference = difference_B(last_logits_BV(model, batch), batch).sum()
                    mean += gradients_of(model, batch, difference, writes)[0] / self.steps
                scores.append(products_BT(change, mean, batch.token_ids_BT.shape))
            return scores, answers
