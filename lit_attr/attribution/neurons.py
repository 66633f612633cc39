"""Neurons: the hidden units of MLPs with the largest scores.

A neuron's score is its activation times the gradient of the logit difference there, both at the input of the MLP's
down projection. The neurons of an MLP and the projection's bias add up to the MLP's score.

Axes: B contrasts, T tokens (padded on the right), N tokens of all rows, I hidden units of an MLP, H width of the
component's output, K neurons with the largest scores, P numbers of a row, C chunks of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from lit_attr.attribution.gradient import GRADIENT, Rule, with_neurons
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import first_given, first_tensor, frozen, recorded, undisturbed
from lit_attr.models.location import Location, input_device
from lit_attr.models.nonlinearities.norms import is_norm
from lit_attr.models.selftest import noise, short_input_BT

# How far the neurons and the bias may be from the MLP's score, relative to the sum of |a·g| over its width.
FLOAT32_TOLERANCE, HALF_TOLERANCE = 1e-5, 0.05
# How far a projection's outputs for test inputs may be from those of an affine map; quantised ones round.
AFFINE_TOLERANCE, COARSE_AFFINE_TOLERANCE = 1e-3, 0.1
# Among the largest of many numbers are only those of the chunks with the largest maxima.
CHUNK = 32


class NeuronScores(NamedTuple):
    """The neurons of each contrast with the largest |score|, the largest first.

    Equal ones are in the order of layer, token and neuron. Neurons that score 0, as all do at padding, are never
    among them: where fewer than K are left, the last places have the layer, token and neuron -1 and the score 0.

    Attributes:
        layer_BK: int64, the layer of the MLP.
        token_BK: int64, the position of the token.
        neuron_BK: int64, the index of the hidden unit.
        score_BK: logits. float32; float64 where the model is.
    """

    layer_BK: Tensor
    token_BK: Tensor
    neuron_BK: Tensor
    score_BK: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> NeuronScores:
        """The same with each tensor replaced by the function's result."""
        return NeuronScores(*map(function, self))

    def join(self, other: NeuronScores) -> NeuronScores:
        """These contrasts followed by others with as many neurons."""
        return NeuronScores(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


@dataclass(frozen=True, eq=False)
class TopNeurons:
    """The neurons that are looked for, from `find_neurons`.

    Attributes:
        count: K, how many of each contrast.
        layers: The layer of each projection.
        projections: The down projection of each MLP.
    """

    count: int
    layers: tuple[int, ...]
    projections: tuple[nn.Module, ...]

    def watch(self, batch: ContrastBatch) -> NeuronWatch:
        """Makes what finds the top neurons in one forward and backward pass over a batch."""
        return NeuronWatch(self, batch)


class NeuronWatch:
    """Finds the top neurons while a backward pass comes by, one layer in memory at a time.

    Args:
        top: What to look for.
        batch: The contrasts of the pass.

    Attributes:
        leaves: After the forward pass, the hidden units at which the tape begins, to which the backward pass must
            go.
    """

    def __init__(self, top: TopNeurons, batch: ContrastBatch) -> None:
        self.leaves: list[Tensor] = []
        self._top = top
        self._last_B = batch.last_B
        self._shape = batch.token_ids_BT.shape
        self._hidden: dict[int, Tensor] = {}
        self._found: dict[int, NeuronScores] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Watches the hidden units of the forward pass within it."""
        with _hidden_units(self._top.projections) as hidden:
            yield
        self._hidden = dict(enumerate(hidden))
        self.leaves = [units for units in hidden if units.is_leaf]
        for place, units in enumerate(hidden):
            units.register_hook(partial(self._take, place))

    def scores(self) -> NeuronScores:
        """The top neurons, after the backward pass."""
        found = [self._found[place] for place in range(len(self._top.layers))]
        device = found[0].score_BK.device
        # A model spread over several devices has them on each layer's device.
        parts = zip(*found, strict=True)
        every = NeuronScores(*(torch.cat([each.to(device) for each in part], 1) for part in parts))
        # The layers are in ascending order, and a stable sort keeps the order of equal scores.
        order_BK = every.score_BK.abs().sort(dim=1, descending=True, stable=True).indices[:, : self._top.count]
        chosen = every.map(lambda tensor: tensor.gather(1, order_BK))
        missing = self._top.count - order_BK.shape[1]
        layer_BK, token_BK, neuron_BK, score_BK = chosen.map(lambda tensor: pad(tensor, (0, missing)))
        layer_BK, token_BK, neuron_BK = (
            each_BK.masked_fill(score_BK == 0, -1) for each_BK in (layer_BK, token_BK, neuron_BK)
        )
        return NeuronScores(layer_BK, token_BK, neuron_BK, score_BK)

    def _take(self, place: int, gradient: Tensor) -> None:
        """Takes the top neurons of an MLP, once the backward pass has come to it, and lets its hidden units go."""
        values = self._hidden.pop(place).detach()
        self._found[place] = self._largest(self._top.layers[place], values, gradient)

    def _largest(self, layer: int, values: Tensor, gradient: Tensor) -> NeuronScores:
        """The top neurons of one MLP."""
        # In half precision the products of small numbers underflow.
        wide = torch.promote_types(values.dtype, torch.float32)
        rows, tokens, units = *self._shape, values.shape[-1]
        # Some projections have the tokens of all rows in one axis; the top one may have run at last tokens only.
        score_BTI = (values.to(wide) * gradient.to(wide)).reshape(rows, -1, units)
        last_B1 = self._last_B.to(values.device)[:, None]
        token_BT = torch.arange(tokens, device=values.device).expand(rows, -1)
        if score_BTI.shape[1] != tokens:
            token_BT = last_B1
        score_BTI = score_BTI.masked_fill((token_BT > last_B1)[..., None], 0)
        place_BK = largest_places_BK(score_BTI.flatten(1), self._top.count)
        return NeuronScores(
            torch.full_like(place_BK, layer),
            token_BT.gather(1, place_BK // units),
            place_BK % units,
            score_BTI.flatten(1).gather(1, place_BK),
        )


def largest_places_BK(values_BP: Tensor, count: int) -> Tensor:
    """The places of the numbers with the largest magnitude of each row, the largest first, equal ones in order.

    Args:
        values_BP: The numbers.
        count: K, how many; all of them where a row has fewer.
    """
    rows, numbers = values_BP.shape
    magnitude_BP = pad(values_BP.abs(), (0, -numbers % CHUNK), value=-1)
    magnitude_BCJ = magnitude_BP.reshape(rows, -1, CHUNK)
    # Sorts are stable: a number before another of the same magnitude stays before it, and so do their chunks.
    chunk_BC = magnitude_BCJ.amax(2).sort(dim=1, descending=True, stable=True).indices[:, :count].sort(1).values
    within_J = torch.arange(CHUNK, device=values_BP.device)
    place_BP = (chunk_BC[..., None] * CHUNK + within_J).flatten(1)
    order_BP = magnitude_BP.gather(1, place_BP).sort(dim=1, descending=True, stable=True).indices
    return place_BP.gather(1, order_BP[:, : min(count, numbers)])


@torch.inference_mode(False)
@torch.enable_grad()
def find_neurons(
    model: PreTrainedModel,
    location: Location,
    count: int,
    *,
    rule: Rule = GRADIENT,
) -> TopNeurons:
    """Finds the down projection of each MLP, and checks that neurons add up to the MLP's score.

    The projection is the affine module whose output is the MLP's write, or what the norm that makes the write
    reads. The check is a forward and a backward pass over a few tokens with the rule: for each MLP and token, the
    scores of the neurons and that of the projection's bias are compared with the MLP's.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored, the component `mlp` among them.
        count: K, how many neurons of each contrast are looked for.
        rule: The rule that scores the MLPs.

    Raises:
        ArgumentError: Neurons are not defined: for another component than `mlp`, a rule that takes no gradient at
            the write or several, an MLP that does not end in one projection, or where they do not add up.
    """
    if count < 1:
        raise ArgumentError("top_neurons", f"{count} is less than 1; give 1 or more")
    location = location.of("mlp")
    if not location.modules:
        raise ArgumentError("top_neurons", "only MLPs have neurons; leave it out or add mlp to the components")
    with_neurons(rule)
    with ExitStack() as stack:
        model = stack.enter_context(undisturbed(model, input_device(model)))
        stack.enter_context(frozen(model))
        projections = _down_projections(model, location)
        stack.enter_context(rule.held())
        _check_sums(model, location, projections)
    return TopNeurons(count, location.layers, projections)


class _Call(NamedTuple):
    module: nn.Module
    given: Tensor
    output: Tensor


@torch.no_grad()
def _down_projections(model: PreTrainedModel, location: Location) -> tuple[nn.Module, ...]:
    calls: list[_Call] = []
    candidates: dict[nn.Module, list[_Call]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, written = (args or (None,))[0], first_tensor(output)
        if len(args) + len(kwargs) == 1 and isinstance(given, Tensor) and isinstance(written, Tensor):
            # A copy, since some blocks add the residual in place.
            calls.append(_Call(module, given, written.clone()))
        if module in location.modules:
            wanted = first_given(args, kwargs) if is_norm(module) else written
            # The outermost first: an adapter's wrapper before the projection in it.
            candidates[module] = [call for call in reversed(calls) if _is_same(call.output, wanted)]
            calls.clear()

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        model(input_ids=short_input_BT(model), use_cache=False)
    found = []
    for layer, module, path in zip(location.layers, location.modules, location.paths, strict=True):
        projection = next((call.module for call in candidates[module] if _is_projection(call)), None)
        if projection is None:
            raise ArgumentError(
                "top_neurons",
                f"{path} ({type(module).__name__}) in layer {layer} does not end in one linear projection, as is "
                "the case with experts, so that it has no neurons; leave it out or choose other layers",
            )
        found.append(projection)
    return tuple(found)


def _is_same(output: Tensor, wanted: Tensor) -> bool:
    return output.numel() == wanted.numel() and torch.equal(output.flatten().to(wanted.device), wanted.flatten())


def _is_projection(call: _Call) -> bool:
    """Whether a module's output is an affine function of its input, and not the input itself."""
    module, given, output = call
    if _is_same(given, output):
        return False
    other = noise(given)
    parts = [first_tensor(module(each)).float() for each in (given + other, given, other, torch.zeros_like(given))]
    error = (parts[0] - parts[1] - parts[2] + parts[3]).abs().max()
    is_precise = all(each.dtype in (torch.float32, torch.float64) for each in (given, *module.parameters()))
    tolerance = AFFINE_TOLERANCE if is_precise else COARSE_AFFINE_TOLERANCE
    return bool(error <= tolerance * max(part.abs().max() for part in parts))


def _check_sums(model: PreTrainedModel, location: Location, projections: Sequence[nn.Module]) -> None:
    """Refuses an MLP whose neurons and bias do not add up to its score."""
    with (
        recorded(location.modules) as writes,
        recorded(projections) as outputs,
        _hidden_units(projections) as hidden,
    ):
        logits_BV = model(input_ids=short_input_BT(model), use_cache=False).logits[:, -1]
    count = len(projections)
    with torch.no_grad():
        biases = [
            first_tensor(each(torch.zeros_like(units))) for each, units in zip(projections, hidden, strict=True)
        ]
    gradients = torch.autograd.grad((logits_BV * noise(logits_BV)).sum(), [*writes, *outputs, *hidden])
    for place in range(count):
        score_NH, bias_NH, score_NI = (
            _products(values[place], gradients[start + place])
            for start, values in ((0, writes), (count, biases), (2 * count, hidden))
        )
        missing_N = score_NH.sum(1) - bias_NH.sum(1) - score_NI.sum(1)
        error = float(missing_N.abs().max() / score_NH.abs().sum(1).max())
        is_precise = writes[place].dtype in (torch.float32, torch.float64)
        if not error <= (FLOAT32_TOLERANCE if is_precise else HALF_TOLERANCE):
            raise ArgumentError("top_neurons", _why_not(location, place, error))


def _why_not(location: Location, place: int, error: float) -> str:
    what = f"the neurons of layer {location.layers[place]} do not add up to the MLP's score (off by {error:.0e}"
    if is_norm(location.modules[place]):
        return (
            f"{what}), since the norm {location.paths[place]} comes after them; leave it out or choose the rule "
            "frozen-norm or linearised, which hold norms"
        )
    return f"{what} of it at {location.paths[place]}); leave it out or load the weights in float32 or bfloat16"


def _products(values: Tensor, gradient: Tensor) -> Tensor:
    return (values.detach().double() * gradient.double()).reshape(-1, values.shape[-1])


@contextmanager
def _hidden_units(projections: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the projections' inputs in the order given; the first to run becomes the leaf of the tape."""
    hidden: list[Tensor] = [torch.empty(0)] * len(projections)

    def collect(place: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        units: Tensor = args[0]
        hidden[place] = units if units.requires_grad else units.detach().requires_grad_()
        return (hidden[place], *args[1:])

    with ExitStack() as hooks:
        for place, module in enumerate(projections):
            handle = module.register_forward_pre_hook(lambda _, args, place=place: collect(place, args))
            hooks.callback(handle.remove)
        yield hidden
