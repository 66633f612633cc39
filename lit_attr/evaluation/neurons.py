"""Neurons by how often they are among those with the largest scores of a relation's known facts."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from msgspec import UNSET

from lit_attr.records.schema import Example

LISTED = 10
# A layer and the index of a hidden unit in it.
Place = tuple[int, int]
# Sums of whole multiples of this are exact, so that they do not depend on the order of the files.
SMALLEST_FLOAT32 = 2.0**-149


class NeuronCounts:
    """Counts the neurons in the records of known contrasts, those whose true token is the most likely one.

    A neuron that is listed at several tokens of a contrast counts once, with the sum of these scores.
    """

    def __init__(self) -> None:
        self._has_neurons = False
        self._contrasts: Counter[str] = Counter()
        self._listed: defaultdict[str, Counter[Place]] = defaultdict(Counter)
        self._units: defaultdict[str, Counter[Place]] = defaultdict(Counter)

    def add(self, example: Example) -> None:
        """Adds a contrast. One that is not known, or has no neurons, is left out."""
        if example.neurons is UNSET:
            return
        self._has_neurons = True
        if example.rank_true > 0:
            return
        relation = example.relation_id
        self._contrasts[relation] += 1
        self._listed[relation].update({(each.layer, each.neuron) for each in example.neurons})
        for each in example.neurons:
            self._units[relation][each.layer, each.neuron] += round(each.score / SMALLEST_FLOAT32)

    def compute(self) -> dict[str, Any] | None:
        """The neurons of each relation, the most frequent first; None where the run has no neurons.

        Equally frequent ones are in the order of the magnitude of their mean score. `share` is that of the
        relation's known contrasts which list the neuron, `other_share` that of the other relations' (None where
        there are no others), and `mean_score`, in logits, is over the contrasts that list it.
        """
        if not self._has_neurons:
            return None
        everywhere: Counter[Place] = Counter()
        for listed in self._listed.values():
            everywhere.update(listed)
        return {
            "known": self._contrasts.total(),
            "relations": [self._relation(relation, everywhere) for relation in sorted(self._contrasts)],
        }

    def _relation(self, relation: str, everywhere: Counter[Place]) -> dict[str, Any]:
        contrasts, others = self._contrasts[relation], self._contrasts.total() - self._contrasts[relation]
        listed, units = self._listed[relation], self._units[relation]
        means = {place: units[place] / count * SMALLEST_FLOAT32 for place, count in listed.items()}
        first = sorted(listed, key=lambda place: (-listed[place], -abs(means[place]), place))[:LISTED]
        return {
            "relation": relation,
            "known": contrasts,
            "neurons": [
                {
                    "layer": layer,
                    "neuron": neuron,
                    "contrasts": listed[layer, neuron],
                    "share": listed[layer, neuron] / contrasts,
                    "other_share": (everywhere[layer, neuron] - listed[layer, neuron]) / others
                    if others
                    else None,
                    "mean_score": means[layer, neuron],
                }
                for layer, neuron in first
            ],
        }
