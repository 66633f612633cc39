"""What the attribution of a batch gives: scores, and exact effects of some of its contrasts.

Axes: B contrasts, L chosen layers, T tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_attr.attribution.catalogue import AblationName, RuleName
from lit_attr.attribution.faithfulness import Curves
from lit_attr.attribution.passes import Answers
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location
from lit_attr.models.transfer import copied, copying

if TYPE_CHECKING:
    from lit_attr.attribution.neurons import NeuronScores


class WindowEffects(NamedTuple):
    """Exact effects of the writes of several layers, replaced together.

    Attributes:
        size: How many layers of one component a window has.
        effects_LT: float32 on the CPU, in logits, at the place of each window's lowest layer; 0 where a window
            would end above the highest.
    """

    size: int
    effects_LT: Tensor


class ExactEffects(NamedTuple):
    """The exact effects of one contrast, and the faithfulness of its scores; see `compare_exactly`.

    Attributes:
        contrast: The contrast.
        place: Its place in the random order of the run; None where the loader knows no such order.
        layers: The layer index of each place on the layer axis.
        components: The component at each place: `mlp`, `attention`, `block` or a module path.
        ablation: By what the write is replaced: `zero`, `mean` or `resample`.
        effects_LT: float32 on the CPU, in logits: the fall of the logit difference when the write is replaced.
            Zeros where `refused`.
        resolution: In logits: effects of smaller magnitude are rounding noise, see `ResolvedEffects`.
        curves: The faithfulness curves of this one contrast, with the rankings in the order of `RANKINGS`; None
            where they could not be computed.
        refused: Why there are no effects; None where there are.
        is_pilot: Whether the error model of an adaptive run is fitted to the contrast.
        windows: The effects of windows of layers; None where they are not asked for.
    """

    contrast: Contrast
    place: int | None
    layers: tuple[int, ...]
    components: tuple[str, ...]
    ablation: AblationName
    effects_LT: Tensor
    resolution: float
    curves: Curves | None
    refused: str | None
    is_pilot: bool = False
    windows: WindowEffects | None = None


class AttributionBatch(NamedTuple):
    """The scores of a batch, detached. Padding scores 0. Numbers are float32; float64 where the model is.

    Attributes:
        contrasts: The attributed contrasts, in the order of the rows.
        layers: The layer index of each place on the layer axis.
        components: The component at each place: `mlp`, `attention`, `block` or a module path.
        rule: The rule that computed the scores, see `lit_attr.attribution.catalogue`.
        scores_sum_BLT: logits. The signed score: Σ_h (a − r)·g, where the rule takes a gradient.
        scores_l2_BLT: logits. The l2 norm over h of (a − r)·g; None where the rule's scores are not such products.
        logit_true_B: The true answer's logit.
        logit_false_B: The false answer's logit.
        prob_true_B: Softmax over the vocabulary.
        prob_false_B: Likewise.
        rank_true_B: int64, how many tokens are more likely than the true one.
        exact: Exact effects of contrasts in the run's sample; empty where none are in the batch.
        is_exact_BLT: bool, the cells whose signed score is the exact effect; None where all are the rule's.
        neurons: The hidden units with the largest scores; None where they are not looked for.
    """

    contrasts: tuple[Contrast, ...]
    layers: tuple[int, ...]
    components: tuple[str, ...]
    rule: RuleName
    scores_sum_BLT: Tensor
    scores_l2_BLT: Tensor | None
    logit_true_B: Tensor
    logit_false_B: Tensor
    prob_true_B: Tensor
    prob_false_B: Tensor
    rank_true_B: Tensor
    exact: tuple[ExactEffects, ...] = ()
    is_exact_BLT: Tensor | None = None
    neurons: NeuronScores | None = None

    @classmethod
    def empty(cls, location: Location, rule: RuleName) -> AttributionBatch:
        """A batch without contrasts, on the CPU, for exact effects that come without scores.

        Args:
            location: The modules whose outputs are scored.
            rule: The rule of the run.
        """
        scores_BLT = torch.zeros(0, len(location.layers), 0)
        numbers_B, ranks_B = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        answers = Answers(numbers_B, numbers_B, numbers_B, numbers_B, ranks_B)
        return cls((), location.layers, location.components, rule, scores_BLT, None, *answers)

    def is_finite_B(self) -> Tensor:
        """Which contrasts have no number that is infinite or NaN: bool."""
        return torch.stack([value.reshape(len(value), -1).isfinite().all(1) for value in self._tensors]).all(0)

    def to(self, device: torch.device | str) -> AttributionBatch:
        """The same batch on another device, by one copy. Exact effects stay on the CPU."""
        return self._with(copied(self._tensors, device))

    def begin_copy(self) -> Callable[[], AttributionBatch]:
        """Begins to copy the batch to the CPU while the device computes; see :func:`copying`.

        Returns:
            A function that waits for the copy and returns the batch on the CPU.
        """
        wait = copying(self._tensors)
        return lambda: self._with(wait())

    def select(self, rows: Sequence[int]) -> AttributionBatch:
        """Some of the contrasts with their scores, and all exact effects."""
        contrasts = tuple(self.contrasts[row] for row in rows)
        return self._replace(contrasts=contrasts)._map(lambda tensor: tensor[list(rows)])

    def padded(self, tokens: int) -> AttributionBatch:
        """The same scores over more tokens, those of padding."""
        missing = tokens - self.scores_sum_BLT.shape[2]
        l2_BLT, is_exact_BLT = self.scores_l2_BLT, self.is_exact_BLT
        return self._replace(
            scores_sum_BLT=pad(self.scores_sum_BLT, (0, missing)),
            scores_l2_BLT=None if l2_BLT is None else pad(l2_BLT, (0, missing)),
            is_exact_BLT=None if is_exact_BLT is None else pad(is_exact_BLT, (0, missing)),
        )

    def join(self, other: AttributionBatch) -> AttributionBatch:
        """This batch followed by another one of the same layers, rule and width."""
        pairs = zip(self._asdict().items(), other, strict=True)
        joined: dict[str, Any] = {
            name: torch.cat([value, cast(Tensor, others)])
            for (name, value), others in pairs
            if isinstance(value, Tensor)
        }
        neurons = None if self.neurons is None else self.neurons.join(cast("NeuronScores", other.neurons))
        return self._replace(
            contrasts=self.contrasts + other.contrasts, exact=self.exact + other.exact, neurons=neurons, **joined
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> AttributionBatch:
        values = self._asdict().items()
        mapped: dict[str, Any] = {name: function(value) for name, value in values if isinstance(value, Tensor)}
        neurons = None if self.neurons is None else self.neurons.map(function)
        return self._replace(neurons=neurons, **mapped)

    @property
    def _tensors(self) -> list[Tensor]:
        return [each for each in self if isinstance(each, Tensor)] + [*(self.neurons or ())]

    def _with(self, tensors: Sequence[Tensor]) -> AttributionBatch:
        arrived = iter(tensors)
        return self._map(lambda _: next(arrived))
