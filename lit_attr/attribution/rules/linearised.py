"""The rule `linearised`: norms, activation functions, gates and, on request, attention as linear maps.

As in RelP (Jafari et al., 2025, arXiv:2508.21258): denominators of norms are constants, an activation f(x) is x
times the constant f(x)/x, each factor of a gated product gets half of the gradient, and attention patterns may be
constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.gradient import Gradient
from lit_attr.attribution.rules.frozen_norm import FrozenNorm, find_norms
from lit_attr.errors import ArgumentError
from lit_attr.models.hooks import calling
from lit_attr.models.location import Location, attentions_by_block, named_mlps
from lit_attr.models.nonlinearities.mlps import Nonlinearities, find_nonlinearities
from lit_attr.models.selftest import short_input_BT

SOFTMAXES = frozenset({softmax, torch.softmax, torch.special.softmax, Tensor.softmax})


@dataclass(frozen=True, eq=False)
class Linearised(Gradient):
    """Gradient × activation with the model linearised at its own activations.

    Attributes:
        norms: Holds the denominators of norms.
        nonlinearities: The activation functions and gates.
        attentions: The attention modules whose patterns are held; none without frozen attention.
    """

    name: ClassVar[RuleName] = "linearised"
    norms: FrozenNorm
    nonlinearities: Nonlinearities
    attentions: tuple[nn.Module, ...] = ()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Linearises norms, activation functions, gates and attention."""
        with self.norms.held(), self.nonlinearities.linearised(), attention_patterns_held(self.attentions):
            yield


def find_linearised(model: PreTrainedModel, location: Location, *, frozen_attention: bool = False) -> Linearised:
    """Finds the nonlinear parts of a model.

    Args:
        model: A causal language model, in eval mode and without gradients for its parameters.
        location: The modules whose outputs are scored.
        frozen_attention: Whether to hold the attention patterns as well.

    Raises:
        ArgumentError: The rule does not support the model's norms, MLPs or attention, or the scored modules lie
            inside gated MLPs.
    """
    attentions = find_attentions(model) if frozen_attention else ()
    nonlinearities = find_nonlinearities(model, named_mlps(model))
    inside = {part for mlp in nonlinearities.gated for part in mlp.modules()} - {*nonlinearities.gated}
    if inside & {*location.modules}:
        raise ArgumentError(
            "component",
            "it lies inside a gated MLP, whose gradient linearised halves as a whole; choose mlp, or another rule",
        )
    return Linearised(FrozenNorm(find_norms(model)), nonlinearities, attentions)


@torch.no_grad()
def find_attentions(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The attention modules of all blocks, after a run that checks that their patterns are held.

    Args:
        model: A causal language model, in eval mode.

    Raises:
        ArgumentError: A block has no attention module, or one without softmax and scaled_dot_product_attention.
    """
    by_block = attentions_by_block(model)
    # Blocks may share a module.
    modules = tuple(dict.fromkeys(module for block in by_block for _, module in block))
    with attention_patterns_held(modules) as patterns:
        model(input_ids=short_input_BT(model), use_cache=False)
    if not all(by_block) or any(pattern.held == 0 for pattern in patterns):
        raise ArgumentError(
            "frozen_attention",
            f"{type(model).__name__} does not make its attention patterns by softmax or "
            "scaled_dot_product_attention in an attention module of each block; leave it out, or load the model "
            "with attn_implementation sdpa or eager",
        )
    return modules


@contextmanager
def attention_patterns_held(modules: Sequence[nn.Module]) -> Iterator[list[_PatternsHeld]]:
    """Makes attention patterns constants of the backward pass, in these modules alone.

    Yields:
        One mode for each module, which counts the patterns that it has held.
    """
    patterns = [_PatternsHeld() for _ in modules]
    with ExitStack() as stack:
        for module, pattern in zip(modules, patterns, strict=True):
            stack.enter_context(calling(module, _within(pattern, module.forward)))
        yield patterns


class _PatternsHeld(TorchFunctionMode):
    """Stops gradients at the softmax, and at query and key of the fused attention.

    A mode belongs to its thread: other threads' models are not affected.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named: dict[str, Any] = kwargs or {}
        if func is scaled_dot_product_attention:
            self.held += 1
            # A function may name its query and key.
            named = {name: each.detach() if name in ("query", "key") else each for name, each in named.items()}
            return func(*(arg.detach() for arg in args[:2]), *args[2:], **named)
        output = func(*args, **named)
        if func in SOFTMAXES:
            self.held += 1
            return output.detach()
        return output


def _within(pattern: _PatternsHeld, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with pattern:
            return forward(*args, **kwargs)

    return run
