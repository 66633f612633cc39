"""Rules for the backward pass: what of the model the scores take as it is, and what they hold or average.

What the model says of the answers is the same under each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_attr.attribution.norm_secant import Reader, find_readers
from lit_attr.errors import UserError
from lit_attr.models.hooks import calling, evaluating, frozen, inputs_recorded
from lit_attr.models.location import Location, named_mlps
from lit_attr.models.mlps import Nonlinearities, find_nonlinearities
from lit_attr.models.norms import Norm, is_norm, read_norm
from lit_attr.models.selftest import short_input_BT

RuleName = Literal["gradient", "frozen-norm", "linearised", "integrated", "norm-secant", "exact"]
# What the scores are called, by rule.
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "gradient": "gradient × activation",
        "frozen-norm": "gradient × activation, norms held",
        "linearised": "gradient × activation, linearised",
        "integrated": "integrated gradient × activation",
        "norm-secant": "gradient × activation, norms by secant",
        "exact": "exact effect (zero ablation)",
    }
)


def rule_title(rule: str) -> str:
    """What a rule's scores are called; one of a module that is not ours goes by its name."""
    return TITLES.get(rule, rule)


class Rule(NamedTuple):
    """A rule, made ready for one model by `find_rule`. Without anything else it is the plain gradient.

    Attributes:
        name: What it is called.
        norms: The norms whose denominators are held in the backward pass.
        nonlinearities: What is linearised in the backward pass.
        frozen_attention: Whether attention patterns are held in the backward pass.
        readers: The norms that take part with their exact change.
        steps: At how many points of its path a gradient is averaged.
    """

    name: RuleName = "gradient"
    norms: Mapping[nn.Module, Norm] = MappingProxyType({})
    nonlinearities: Nonlinearities = Nonlinearities((), ())
    frozen_attention: bool = False
    readers: tuple[Reader, ...] = ()
    steps: int = 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """A model under this rule; afterwards it is as before, also after an error."""
        with ExitStack() as stack:
            for module, norm in self.norms.items():
                stack.enter_context(calling(module, norm.holding_denominators(module.forward)))
            stack.enter_context(self.nonlinearities.linearised())
            if self.frozen_attention:
                stack.enter_context(_attention_patterns_held())
            yield


GRADIENT = Rule()


def find_rule(
    model: PreTrainedModel,
    location: Location,
    name: RuleName,
    *,
    steps: int = 8,
    frozen_attention: bool = False,
) -> Rule:
    """Makes a rule ready for a model: finds the modules that it treats otherwise, and tries what they do.

    It is of the weights as they are then; a model that is trained on needs it anew.

    - `gradient`: gradient × activation as it is.
    - `frozen-norm`: the denominators of LayerNorms and RMSNorms are constants (the LN-rule of Ali et al., 2022,
      arXiv:2202.07304).
    - `linearised`: so they are, an activation function f(x) is x times the constant f(x)/x, and a gate passes half
      the gradient on each side, as in RelP (Jafari et al., 2025, arXiv:2508.21258).
    - `integrated`: the mean of the gradients at the middles of equal parts of the path on which the write of a
      layer, at all tokens, goes from zero to what it is (Sundararajan et al., 2017, arXiv:1703.01365).
    - `norm-secant`: each norm that reads the residual stream takes part with the exact change of its output when
      the write is left out; see `lit_attr.attribution.norm_secant`.
    - `exact`: no gradient, but the exact effects of `lit_attr.attribution.exact_effects`.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored.
        name: The rule.
        steps: With `integrated`, how many gradients are averaged.
        frozen_attention: With `linearised`, hold the attention patterns as well.

    Raises:
        UserError: There is no such rule, an option does not belong to it, or the model has something that the rule
            does not understand.
    """
    if name not in get_args(RuleName):
        raise UserError(f"model.rule: {name!r} is none of {', '.join(get_args(RuleName))}")
    if steps < 1:
        raise UserError(f"model.integration_steps: {steps} is less than 1")
    if frozen_attention and name != "linearised":
        raise UserError("model.frozen_attention: belongs to the rule linearised; leave it out or take that")
    with evaluating(model), frozen(model):
        if name == "integrated":
            return Rule(name, steps=steps)
        if name == "frozen-norm":
            return Rule(name, _find_norms(model))
        if name == "linearised":
            if frozen_attention:
                _check_attention(model)
            nonlinearities = find_nonlinearities(model, named_mlps(model))
            inside = {part for mlp in nonlinearities.gated for part in mlp.modules()} - {*nonlinearities.gated}
            if inside & {*location.modules}:
                raise UserError(
                    "model.component: lies inside a gated MLP, whose gradient linearised halves as a whole; take "
                    "mlp, or another rule"
                )
            return Rule(name, _find_norms(model), nonlinearities, frozen_attention)
        if name == "norm-secant":
            return Rule(name, readers=find_readers(model, location, _find_norms(model)))
    return Rule(name)


@torch.no_grad()
def _find_norms(model: PreTrainedModel) -> dict[nn.Module, Norm]:
    named = [(name, module) for name, module in model.named_modules() if is_norm(module)]
    with inputs_recorded([module for _, module in named]) as inputs:
        model(input_ids=short_input_BT(model), use_cache=False)
    norms = {
        module: read_norm(module, given, name)
        for (name, module), given in zip(named, inputs, strict=True)
        if given.numel()  # else it has not run
    }
    if not norms:
        raise UserError("model.rule: no norms are found in this model; take the rule gradient or integrated")
    return norms


@contextmanager
def _attention_patterns_held() -> Iterator[list[nn.Module]]:
    """Queries and keys, of which the patterns are made, pass no gradient on; yields the modules that attend."""
    # There is one registry for all models; another thread's would be held as well.
    registry, attended = ALL_ATTENTION_FUNCTIONS, []
    find: Callable[..., Callable[..., Any]] = registry.get_interface

    def get_interface(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        attend = find(*args, **kwargs)

        def run(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
            attended.append(module)
            return attend(module, query.detach(), key.detach(), value, *rest, **named)

        return run

    before = vars(registry).get("get_interface")
    vars(registry)["get_interface"] = get_interface
    try:
        yield attended
    finally:
        del vars(registry)["get_interface"]
        if before is not None:
            vars(registry)["get_interface"] = before


@torch.no_grad()
def _check_attention(model: PreTrainedModel) -> None:
    with _attention_patterns_held() as attended:
        model(input_ids=short_input_BT(model), use_cache=False)
    if len(attended) < model.config.get_text_config().num_hidden_layers:
        raise UserError(
            f"model.frozen_attention: {type(model).__name__} does not attend by a function of transformers' that "
            "can be exchanged; leave it out"
        )
