"""The error model of an adaptive run: which cells' estimates are predicted to be wrong, and by how much.

It is fitted to a pilot of contrasts all of whose exact effects are known. It needs no torch.

Axes: L chosen layers, T tokens of one contrast, N cells, K features, P contrasts of the pilot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.facts.roles import ROLES

# The strength of the ridge penalty, for features that are not scaled.
RIDGE = 3.0
# Added to squared errors, in logits², before their logarithm is taken: the last layer has errors of 0.
SMALLEST_SQUARE = 1e-8
SMALLEST = 1e-12
# The pilot's agreement is taken from error models that have not seen the contrast in question.
FOLDS = 4
# A promise is taken for kept where all but this part of bootstrap samples of the pilot's contrasts keep it: a few
# contrasts can have most of the effects, and a pilot without them, or with them alone, expects too much.
DOUBT, SAMPLES = 0.05, 400
# How many counts of exact cells are tried.
COUNTS = 400

# With frozen weights a backward pass computes the gradients of activations alone, in the time of a forward pass.
# Measured on two models, 1.9 forward passes of exact effects take as long as a pass of the gradient.
FORWARDS_A_GRADIENT = 2

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Estimate(NamedTuple):
    """What one pass knows of a contrast.

    Attributes:
        scores_LT: The rule's scores, in logits.
        gradient_LT: Gradient × activation, Σ_h a·g, in logits.
        norms_LT: The l2 norm over h of a·g, in logits.
        share_LT: ‖write‖ / ‖residual stream after the block‖.
        roles: The role of each token.
    """

    scores_LT: Values
    gradient_LT: Values
    norms_LT: Values
    share_LT: Values
    roles: Sequence[str]

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        return all(bool(np.isfinite(values_LT).all()) for values_LT in self[:4])


class Targets(NamedTuple):
    """What an adaptive run promises.

    Attributes:
        overall: Pearson's correlation with the exact effects over all cells.
        by_layer: In each layer; None for no such promise.
        max_cost: Bound of the expected cost of exact effects, in passes of the plain gradient for each contrast;
            None for none.
    """

    overall: float
    by_layer: float | None = None
    max_cost: float | None = None


class ErrorModel(NamedTuple):
    """A fitted error model with the thresholds that keep a promise.

    Attributes:
        layers: The chosen layers.
        depth: The number of layers of the language model.
        weights_K: The coefficients of the features, see :func:`features_NK`; the last one is the intercept.
        thresholds_L: A cell is computed exactly where its predicted squared error, in logits², per cost, in
            forward passes, is above its layer's threshold.
        expected: The agreement over all cells that the pilot shows at these thresholds.
        expected_by_layer: In each layer; NaN where nothing varies.
        cost: The expected work beside the rule's own, in forward passes for each contrast.
    """

    layers: tuple[int, ...]
    depth: int
    weights_K: Values
    thresholds_L: Values
    expected: float
    expected_by_layer: Values
    cost: float

    def to_json(self) -> dict[str, Any]:
        """The model in JSON types; an agreement is None where nothing varies."""
        fields: dict[str, Any] = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in self._asdict().items()
        }
        # A threshold is infinite where a layer has no exact cell.
        for name in ("thresholds_L", "expected_by_layer"):
            fields[name] = [value if np.isfinite(value) else None for value in fields[name]]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ErrorModel:
        """The model that `to_json` has given."""
        thresholds_L = [np.inf if value is None else value for value in fields["thresholds_L"]]
        by_layer = [np.nan if value is None else value for value in fields["expected_by_layer"]]
        return cls(
            tuple(fields["layers"]),
            fields["depth"],
            np.array(fields["weights_K"]),
            np.array(thresholds_L),
            fields["expected"],
            np.array(by_layer),
            fields["cost"],
        )

    def wants_LT(self, estimate: Estimate) -> Flags:
        """Which cells of a contrast are computed exactly. It depends on the contrast alone."""
        shape = estimate.scores_LT.shape
        with np.errstate(over="ignore", invalid="ignore"):
            squares_LT = np.exp(features_NK(estimate) @ self.weights_K).reshape(shape)
        bounds_LT = self.thresholds_L[:, None] * costs_LT(self.layers, self.depth, shape[1])
        # Also where nothing can be predicted, since a norm has overflowed.
        wanted_LT: Flags = ~(squares_LT <= bounds_LT)
        return wanted_LT


def costs_LT(layers: Sequence[int], depth: int, tokens: int) -> Values:
    """The cost of each cell's exact effect in forward passes: the part of the model above and after the cell."""
    above_L = (depth - np.array(layers)) / depth
    after_T = (tokens - np.arange(tokens)) / tokens
    return np.outer(above_L, after_T)


def features_NK(estimate: Estimate) -> Values:
    """The features of each cell, layer by layer: those of the plain gradient, whatever the rule.

    They are log ‖a·g‖, log |Σ a·g|, the logarithm of the write's share of the residual stream, the position and
    the number of tokens left; layer, role and layer × [position 0] as categories; and log ‖a·g‖ for each layer.
    """
    layers, tokens = estimate.scores_LT.shape
    norms_LT = np.log(estimate.norms_LT + SMALLEST)
    position_T = np.arange(tokens, dtype=np.float64)
    numbers = (
        norms_LT,
        np.log(np.abs(estimate.gradient_LT) + SMALLEST),
        np.log(estimate.share_LT + SMALLEST),
        np.broadcast_to(position_T, norms_LT.shape),
        np.broadcast_to(tokens - 1 - position_T, norms_LT.shape),
    )
    layer_NL = np.repeat(np.eye(layers), tokens, axis=0)
    role_TR = np.array([[role == each for each in ROLES] for role in estimate.roles], dtype=np.float64)
    is_first_N = np.tile(position_T == 0, layers)
    parts = [
        np.stack([each_LT.ravel() for each_LT in numbers], 1),
        layer_NL,
        np.tile(role_TR, (layers, 1)),
        layer_NL * is_first_N[:, None],
        layer_NL * norms_LT.ravel()[:, None],
        np.ones((layers * tokens, 1)),
    ]
    return np.concatenate(parts, 1)


def fit(
    layers: Sequence[int], depth: int, pilot: Sequence[tuple[Estimate, Values]], targets: Targets
) -> ErrorModel:
    """Fits an error model, and thresholds that keep the promise on contrasts that a fit has not seen.

    Args:
        layers: The chosen layers.
        depth: The number of layers of the language model.
        pilot: What is known of each contrast, and its exact effects [L, T]. At least two contrasts.
        targets: The promise.
    """
    rows = [(features_NK(estimate), _log_squares_N(estimate, effects_LT)) for estimate, effects_LT in pilot]
    unseen = _Unseen(layers, depth, pilot, [*_left_out(rows)])
    thresholds_L, reached = unseen.thresholds(targets)
    weights_K = _ridge(np.concatenate([x for x, _ in rows]), np.concatenate([y for _, y in rows]))
    return ErrorModel(
        tuple(layers),
        depth,
        weights_K,
        thresholds_L,
        reached.overall,
        reached.by_layer_L,
        reached.cost,
    )


class _Reached(NamedTuple):
    overall: float
    by_layer_L: Values
    cost: float


class _Unseen:
    """The cells of the pilot with errors predicted by fits that have not seen their contrast.

    Args:
        layers: The chosen layers.
        depth: The number of layers of the language model.
        pilot: The contrasts.
        predicted: The logarithm of each contrast's predicted squared errors, layer by layer.
    """

    def __init__(
        self,
        layers: Sequence[int],
        depth: int,
        pilot: Sequence[tuple[Estimate, Values]],
        predicted: Sequence[Values],
    ) -> None:
        self._contrasts = len(pilot)
        self._layers = len(layers)
        cells = [
            (
                np.repeat(np.arange(len(layers)), each.scores_LT.shape[1]),
                each.scores_LT.ravel(),
                effects_LT.ravel(),
                costs_LT(layers, depth, each.scores_LT.shape[1]).ravel(),
            )
            for each, effects_LT in pilot
        ]
        self._layer_N, self._scores_N, self._effects_N, self._costs_N = (
            np.concatenate(part) for part in zip(*cells, strict=True)
        )
        sizes = [each.scores_LT.size for each, _ in pilot]
        self._contrast_N = np.repeat(np.arange(len(pilot)), sizes)
        shares_P = np.full(len(pilot), 1 / len(pilot))
        # The same for every process and run.
        samples_BP = np.random.default_rng(0).multinomial(len(pilot), shares_P, SAMPLES)
        self._samples_BP = samples_BP.astype(np.float64)
        self._value_N = np.exp(np.concatenate(predicted)) / self._costs_N

    def thresholds(self, targets: Targets) -> tuple[Values, _Reached]:
        """One threshold for all cells that keeps the promise over all, lowered in the layers that need it."""
        order_N = np.argsort(-self._value_N, kind="stable")
        bound = np.inf if targets.max_cost is None else targets.max_cost * FORWARDS_A_GRADIENT
        count = self._fewest(order_N, targets.overall, bound)
        thresholds_L = np.full(self._layers, self._value_after(order_N, count))
        if targets.by_layer is not None:
            for layer in range(self._layers):
                left = bound - self._reached(thresholds_L).cost
                in_layer_N = order_N[self._layer_N[order_N] == layer]
                already = int((self._value_N[in_layer_N] > thresholds_L[layer]).sum())
                fewest = self._fewest(in_layer_N, targets.by_layer, np.inf)
                extra = np.cumsum(self._costs_N[in_layer_N[already:fewest]]) / self._contrasts
                fewest = min(fewest, already + int((extra <= left).sum()))
                if fewest > already:
                    thresholds_L[layer] = self._value_after(in_layer_N, fewest)
        return thresholds_L, self._reached(thresholds_L)

    def _fewest(self, order_N: NDArray[np.int64], agreement: float, bound: float) -> int:
        """How many cells, in this order, have to be exact for an agreement over these cells, within a cost.

        The agreement is one that all but `DOUBT` of the bootstrap samples of the pilot's contrasts reach.
        """
        total = len(order_N)
        # The first cells are those that decide, so that the counts that are tried lie close together there.
        counts_C = np.unique((np.linspace(0, 1, COUNTS) ** 2 * total).astype(np.int64))
        lower_C = self._lower_C(order_N, counts_C)
        cost_N = np.concatenate([[0.0], np.cumsum(self._costs_N[order_N])]) / self._contrasts
        # Not the first count that happens to reach it: from there on it has to stay.
        below = np.flatnonzero(lower_C < agreement)
        fewest = 0 if not len(below) else int(counts_C[min(int(below[-1]) + 1, len(counts_C) - 1)])
        return min(fewest, int((cost_N <= bound).sum()) - 1)

    def _lower_C(self, order_N: NDArray[np.int64], counts_C: NDArray[np.int64]) -> Values:
        """The quantile `DOUBT` over bootstrap samples of the correlation with so many cells exact."""
        scores_N, effects_N = self._scores_N[order_N], self._effects_N[order_N]
        x_N, y_N = scores_N - effects_N.mean(), effects_N - effects_N.mean()
        # Cells that are exact from the count C on; those after the last count never are.
        from_N = np.searchsorted(counts_C, np.arange(len(order_N)), side="right")
        places_N = self._contrast_N[order_N] * (len(counts_C) + 1) + from_N

        def sums_BC(estimated_N: Values, exact_N: Values) -> Values:
            start_P = np.bincount(self._contrast_N[order_N], estimated_N, self._contrasts)
            changes = np.bincount(places_N, exact_N - estimated_N, self._contrasts * (len(counts_C) + 1))
            changes_PC = changes.reshape(self._contrasts, -1)[:, :-1]
            found_BC: Values = self._samples_BP @ (start_P[:, None] + np.cumsum(changes_PC, 1))
            return found_BC

        cells_BC = sums_BC(np.ones_like(x_N), np.ones_like(x_N))
        sum_x_BC, sum_y_BC = sums_BC(x_N, y_N), sums_BC(y_N, y_N)
        spread_x_BC = sums_BC(x_N * x_N, y_N * y_N) - sum_x_BC**2 / cells_BC
        spread_y_BC = sums_BC(y_N * y_N, y_N * y_N) - sum_y_BC**2 / cells_BC
        product_BC = sums_BC(x_N * y_N, y_N * y_N) - sum_x_BC * sum_y_BC / cells_BC
        with np.errstate(divide="ignore", invalid="ignore"):
            r_BC = product_BC / np.sqrt(spread_x_BC * spread_y_BC)
        # A sample in which nothing varies says nothing.
        varies_BC = np.isfinite(r_BC)
        return np.asarray(np.quantile(np.where(varies_BC, r_BC, 1.0), DOUBT, axis=0))

    def _value_after(self, order_N: NDArray[np.int64], count: int) -> float:
        """The threshold below which `count` cells are left out."""
        if count == 0:
            return np.inf
        return 0.0 if count == len(order_N) else float(self._value_N[order_N[count]])

    def _reached(self, thresholds_L: Values) -> _Reached:
        is_exact_N = self._value_N > thresholds_L[self._layer_N]
        mixed_N = np.where(is_exact_N, self._effects_N, self._scores_N)
        by_layer_L = [
            _pearson(mixed_N[self._layer_N == layer], self._effects_N[self._layer_N == layer])
            for layer in range(self._layers)
        ]
        cost = float(self._costs_N[is_exact_N].sum() / self._contrasts)
        return _Reached(_pearson(mixed_N, self._effects_N), np.array(by_layer_L), cost)


def _left_out(rows: Sequence[tuple[Values, Values]]) -> Iterator[Values]:
    """The prediction for each contrast by a fit to the contrasts of the other folds."""
    folds = min(FOLDS, len(rows))
    weights = []
    for fold in range(folds):
        kept = [row for place, row in enumerate(rows) if place % folds != fold]
        weights.append(_ridge(np.concatenate([x for x, _ in kept]), np.concatenate([y for _, y in kept])))
    for place, (features, _) in enumerate(rows):
        yield features @ weights[place % folds]


def _ridge(features_NK: Values, targets_N: Values) -> Values:
    """Ridge regression; the last feature is the intercept, which is not penalised."""
    penalty_K = np.full(features_NK.shape[1], RIDGE)
    penalty_K[-1] = 0
    weights_K: Values = np.linalg.solve(
        features_NK.T @ features_NK + np.diag(penalty_K), features_NK.T @ targets_N
    )
    return weights_K


def _log_squares_N(estimate: Estimate, effects_LT: Values) -> Values:
    squares_N: Values = np.log((effects_LT - estimate.scores_LT).ravel() ** 2 + SMALLEST_SQUARE)
    return squares_N


def _pearson(x_N: Values, y_N: Values) -> float:
    """Pearson's correlation; NaN where one of the two does not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
        return float(x_N @ y_N / np.sqrt((x_N @ x_N) * (y_N @ y_N)))
