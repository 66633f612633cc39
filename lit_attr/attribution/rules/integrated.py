"""The rule `integrated`: gradients averaged along a path (Sundararajan et al., 2017, arXiv:1703.01365).

On the path, one layer's write grows at all tokens from zero to its value. The gradient is averaged over the
midpoints of equal parts of the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.gradient import LayerScores, Rule, last_tokens_only, products_BT
from lit_attr.attribution.passes import Answers, answers_of, difference_B, gradients_of, last_logits_BV
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import first_tensor, outputs_changed, recorded, replace_first
from lit_attr.models.location import Location


@dataclass(frozen=True)
class Integrated(Rule):
    """Activation × mean gradient on the path from a zero write.

    Attributes:
        steps: The number of gradients that are averaged.
    """

    name: ClassVar[RuleName] = "integrated"
    steps: int = 8

    def scores(
        self, model: PreTrainedModel, location: Location, batch: ContrastBatch
    ) -> tuple[Sequence[LayerScores], Answers]:
        """Each layer's products of activation and mean gradient."""
        with last_tokens_only(model, location, batch):
            with torch.no_grad(), recorded(location.modules) as activations:
                answers = answers_of(last_logits_BV(model, batch), batch)
            scores: list[LayerScores] = []
            for module, activation in zip(location.modules, activations, strict=True):
                wide = torch.promote_types(activation.dtype, torch.float32)
                mean = torch.zeros_like(activation, dtype=wide)
                for step in range(self.steps):

                    def scale(_: int, output: Any, part: float = (step + 0.5) / self.steps) -> Any:
                        return replace_first(output, first_tensor(output) * part)

                    with outputs_changed([module], scale), recorded([module]) as writes:
                        difference = difference_B(last_logits_BV(model, batch), batch).sum()
                    mean += gradients_of(model, batch, difference, writes)[0] / self.steps
                scores.append(products_BT(activation, mean, batch.token_ids_BT.shape))
            return scores, answers
