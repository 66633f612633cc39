"""The rule `exact`: exact effects in the place of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.attribution.gradient import LayerScores, Rule
from lit_attr.attribution.passes import Answers, answers_of, last_logits_BV, only_last_logits
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.location import Location


class Exact(Rule):
    """Exact effects in the place of scores."""

    name: ClassVar[RuleName] = "exact"

    @torch.no_grad()
    def scores(
        self,
        model: PreTrainedModel,
        location: Location,
        batch: ContrastBatch,
        replacement_BLTH: Tensor | None = None,
    ) -> tuple[Sequence[LayerScores], Answers]:
        """Each layer's exact effects."""
        effects_BLT = exact_effects_BLT(model, location, batch, replacement_BLTH)
        with only_last_logits(model, batch):
            answers = answers_of(last_logits_BV(model, batch), batch)
        return [(effects_BT, None) for effects_BT in effects_BLT.unbind(1)], answers
