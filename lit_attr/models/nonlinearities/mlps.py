"""Activation functions and gates of a model's MLPs, identified by their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_attr.errors import ArgumentError
from lit_attr.models.hooks import calling, first_tensor, fused_gelus
from lit_attr.models.selftest import noise, short_input_BT

# How far an MLP without its activation functions may deviate from a polynomial, relative to its output.
FLOAT32_TOLERANCE, COARSE_TOLERANCE = 1e-3, 0.1
SMALL = 1e-6


class Nonlinearities(NamedTuple):
    """The nonlinear parts of a model's MLPs.

    Attributes:
        activations: The modules that apply an elementwise function.
        slopes: The slope of each of these functions at zero.
        gated: The MLPs that multiply two projections with each other.
    """

    activations: tuple[nn.Module, ...]
    slopes: tuple[float, ...]
    gated: tuple[nn.Module, ...]

    @contextmanager
    def linearised(self) -> Iterator[None]:
        """Treats an activation f(x) as x times the constant f(x)/x in the backward pass, and halves gates.

        Each factor of a gated product gets half of the gradient. The forward pass does not change.
        """
        with ExitStack() as stack:
            for module, slope in zip(self.activations, self.slopes, strict=True):
                stack.enter_context(calling(module, _as_factor(module.forward, slope)))
            for mlp in self.gated:
                # Both factors of the product send their gradient through the MLP's input.
                stack.callback(mlp.register_forward_pre_hook(_halve_gradient, with_kwargs=True).remove)
            yield


def find_nonlinearities(model: PreTrainedModel, mlps: Sequence[tuple[str, nn.Module]]) -> Nonlinearities:
    """Finds activation functions and gates by the outputs for test inputs.

    Args:
        model: A causal language model, in eval mode.
        mlps: The MLPs and their paths.

    Raises:
        ArgumentError: There is no MLP; or one, without its activation functions, is neither linear nor a product
            of two projections.
    """
    if not mlps:
        raise ArgumentError(
            "rule",
            f"no MLP of {type(model).__name__} is a module of its own, which linearised needs; choose frozen-norm "
            "or norm-secant",
        )
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as hooks, torch.no_grad():
        for _, mlp in mlps:
            hooks.callback(mlp.register_forward_pre_hook(_keep_in(calls), with_kwargs=True).remove)
        model(input_ids=short_input_BT(model), use_cache=False)
    activations: list[nn.Module] = []
    gated: list[nn.Module] = []
    for name, mlp in mlps:
        found = [module for module in mlp.modules() if _is_elementwise(module)]
        only_projections = all(
            "linear" in type(module).__name__.lower() or isinstance(module, Conv1D)
            for module in mlp.modules()
            if not [*module.children()] and [*module.parameters()]
        )
        degree = _degree(mlp, found, *calls[mlp]) if only_projections and mlp in calls else None
        if degree is None:
            raise ArgumentError(
                "rule",
                f"{name} ({type(mlp).__name__}) is not an MLP that linearised supports; choose frozen-norm or "
                "norm-secant",
            )
        activations += found
        if degree == 2:
            gated.append(mlp)
    # Blocks may share a module.
    activations = [*dict.fromkeys(activations)]
    like = next(model.parameters())
    slopes = tuple(_slope_at_0(module, like) for module in activations)
    return Nonlinearities(tuple(activations), slopes, tuple(dict.fromkeys(gated)))


def _keep_in(calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]) -> Callable[..., None]:
    def keep(mlp: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[mlp] = args, kwargs

    return keep


@torch.no_grad()
def _is_elementwise(module: nn.Module) -> bool:
    """Whether a module without parameters maps each number by itself, zero to zero, and some to another one."""
    if [*module.children(), *module.parameters()]:
        return False
    values = torch.linspace(-2, 2, 8)
    try:
        output = module(values.clone())
        # What returns its input, as dropout does here, is linear as it is. Below, `values` may be written into.
        is_identity = output.shape == values.shape and torch.equal(output, values)
        alone = torch.stack([module(value[None])[0] for value in values])
        nothing = module(torch.zeros(1))
    except Exception:  # a module with other inputs may raise anything
        return False
    if is_identity or output.shape != values.shape:
        return False
    return bool(torch.allclose(output, alone) and nothing.abs().max() < SMALL)


@torch.no_grad()
def _slope_at_0(module: nn.Module, like: Tensor) -> float:
    """The slope of an activation function at zero, as passes compute it."""
    with fused_gelus(module):
        slope: Tensor = module(like.new_full((1,), SMALL)) / SMALL
    return slope.item()


@torch.no_grad()
def _degree(
    mlp: nn.Module, activations: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> int | None:
    """The degree, 1 or 2, of an MLP without activation functions as a polynomial; None if neither."""
    given = args[0] if args else kwargs["hidden_states"]
    start, step = noise(given), noise(given.flip(0)).flip(-1)

    def run(steps: int) -> Tensor:
        hidden = start + steps * step
        output = mlp(hidden, *args[1:], **kwargs) if args else mlp(**{**kwargs, "hidden_states": hidden})
        return first_tensor(output).to(torch.promote_types(given.dtype, torch.float32))

    with ExitStack() as stack:
        for module in activations:
            stack.enter_context(calling(module, lambda values, *_, **__: values))
        values = [run(steps) for steps in range(4)]
    size = max(value.abs().max() for value in values)
    # Quantised layers round their input.
    is_precise = all(tensor.dtype in (torch.float32, torch.float64) for tensor in (given, *mlp.parameters()))
    tolerance = FLOAT32_TOLERANCE if is_precise else COARSE_TOLERANCE
    for degree in (1, 2):
        values = [after - before for before, after in pairwise(values)]
        bend = max((after - before).abs().max() for before, after in pairwise(values))
        if bend <= tolerance * size:
            return degree
    return None


def _as_factor(forward: Callable[..., Tensor], slope_at_0: float) -> Callable[..., Tensor]:
    def run(values: Tensor) -> Tensor:
        factored: Tensor = _Factor.apply(values, forward, slope_at_0)  # type: ignore[no-untyped-call]
        return factored

    return run


class _Factor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, forward: Callable[..., Tensor], slope_at_0: float) -> Tensor:
        # Some activations write into their input.
        output = forward(values.clone())
        # Whether there is a zero at all is not asked: on a device, the answer would have to be waited for.
        ctx.save_for_backward((output / values).masked_fill_(values.abs() < SMALL, slope_at_0))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None, None


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] / 2


def _halve_gradient(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = args[0] if args else kwargs["hidden_states"]
    halved = _Half.apply(given)  # type: ignore[no-untyped-call]
    return ((halved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": halved})
