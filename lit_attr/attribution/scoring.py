"""How the scores of a run are computed: the rule, the ablation that it estimates, and the neurons beside it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.ablation import ZERO, Ablation
from lit_attr.attribution.gradient import GRADIENT, Rule, attribute_batch
from lit_attr.attribution.neurons import TopNeurons
from lit_attr.attribution.results import AttributionBatch
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.location import Location


class Scoring(NamedTuple):
    """How scores are computed, for one model.

    Attributes:
        rule: The rule, from `find_rule`.
        ablation: By what exact effects replace a write, and what scores subtract from it.
        top_neurons: Which hidden units to look for in the same pass; None for none.
        window: How many layers' writes a comparison with exact effects replaces together as well; None for none.
    """

    rule: Rule = GRADIENT
    ablation: Ablation = ZERO
    top_neurons: TopNeurons | None = None
    window: int | None = None

    def scores(
        self, model: PreTrainedModel, location: Location, batch: ContrastBatch, replacement_BLTH: Tensor | None
    ) -> AttributionBatch:
        """The scores of a batch, where the writes of the ablation are known: see `attribute_batch`."""
        return attribute_batch(
            model,
            location,
            batch,
            rule=self.rule,
            replacement_BLTH=replacement_BLTH,
            top_neurons=self.top_neurons,
        )


def check_window(location: Location, window: int | None) -> None:
    """Refuses a window that no layers have.

    Raises:
        ArgumentError: It has one layer, or more than there are, or the layers are not consecutive.
    """
    layers = [*dict.fromkeys(location.layers)]
    if window is None:
        return
    if not 2 <= window <= len(layers):
        raise ArgumentError(
            "window", f"{window} is not from 2 to {len(layers)}, the number of layers; give another"
        )
    if layers != [*range(layers[0], layers[0] + len(layers))]:
        raise ArgumentError(
            "window", "its layers are replaced together; choose consecutive layers, or leave it out"
        )


def score_batch(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, scoring: Scoring = Scoring()
) -> AttributionBatch:
    """Scores a batch as `attribute_batch` does, with the writes of an ablation.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored.
        batch: The contrasts, on the device of the model's embeddings.
        scoring: How scores are computed.
    """
    return scoring.scores(model, location, batch, scoring.ablation.replacement_BLTH(model, location, batch))
