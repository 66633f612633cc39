"""The catalogue of rules: one entry for each way to compute scores.

Importing it does not import torch, so that what reads records can name rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from lit_attr.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_attr.attribution.gradient import Rule
    from lit_attr.models.location import Location

RuleName = Literal["gradient", "frozen-norm", "linearised", "integrated", "norm-secant", "exact"]
# By what a write is replaced, see `lit_attr.attribution.ablation`.
AblationName = Literal["zero", "mean", "resample"]


@dataclass(frozen=True)
class RuleOptions:
    """Options that belong to one rule each.

    Args:
        integration_steps: With the rule `integrated`, the number of gradients that are averaged.
        frozen_attention: With the rule `linearised`, hold the attention patterns constant as well.
    """

    integration_steps: int = 8
    frozen_attention: bool = False


@dataclass(frozen=True)
class AblationOptions:
    """Options that belong to one ablation each.

    Args:
        mean_contrasts: With the ablation `mean`, over how many random contrasts of the run writes are averaged.
        mean_writes: With the ablation `mean`, a safetensors file with the means, as a run keeps them.
    """

    mean_contrasts: int = 256
    mean_writes: str | None = None


class RuleEntry(NamedTuple):
    """A rule of the catalogue.

    Attributes:
        name: The rule's name, as users give it.
        title: The name of its scores in pictures and reports.
        description: How it computes scores, with the source.
        cost: The passes through the model that it takes.
        needs: The models that it works for.
        prepare: Makes the rule for a model in eval mode without parameter gradients.
    """

    name: RuleName
    title: str
    description: str
    cost: str
    needs: str
    prepare: Callable[[PreTrainedModel, Location, RuleOptions], Rule]


def rule_title(name: str) -> str:
    """The title of a rule's scores; for a rule that is not in the catalogue, its name."""
    entry = CATALOGUE.get(name)
    return name if entry is None else entry.title


def find_rule(
    model: PreTrainedModel,
    location: Location,
    name: RuleName,
    *,
    steps: int = 8,
    frozen_attention: bool = False,
) -> Rule:
    """Prepares a rule for a model: finds the modules that it treats differently, and checks their outputs.

    A rule keeps values derived from the weights. Prepare it again after training.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored.
        name: The name of the rule, see `CATALOGUE`.
        steps: How many gradients the rule `integrated` averages.
        frozen_attention: Whether the rule `linearised` holds the attention patterns as well.

    Raises:
        ArgumentError: There is no such rule, an option does not belong to it, or it does not support the model.
    """
    from lit_attr.models.hooks import evaluating, fresh_rotary_frequencies, frozen, uncompiled

    # Not by the key: what is given from Python may be anything.
    entry = next((each for each in CATALOGUE.values() if each.name == name), None)
    if entry is None:
        raise ArgumentError("rule", f"{name!r} is none of {', '.join(CATALOGUE)}")
    if steps < 1:
        raise ArgumentError("steps", f"{steps} is less than 1; give 1 or more")
    if frozen_attention and name != "linearised":
        raise ArgumentError(
            "frozen_attention", "it belongs to the rule linearised; leave it out or choose that rule"
        )
    with uncompiled(model) as model, evaluating(model), frozen(model), fresh_rotary_frequencies(model):
        return entry.prepare(model, location, RuleOptions(steps, frozen_attention))


# The rules are imported when they are prepared: they need torch.


def _gradient(model: PreTrainedModel, location: Location, options: RuleOptions) -> Rule:
    from lit_attr.attribution.gradient import GRADIENT

    return GRADIENT


def _frozen_norm(model: PreTrainedModel, location: Location, options: RuleOptions) -> Rule:
    from lit_attr.attribution.rules.frozen_norm import FrozenNorm, find_norms

    return FrozenNorm(find_norms(model))


def _linearised(model: PreTrainedModel, location: Location, options: RuleOptions) -> Rule:
    from lit_attr.attribution.rules.linearised import find_linearised

    return find_linearised(model, location, frozen_attention=options.frozen_attention)


def _integrated(model: PreTrainedModel, location: Location, options: RuleOptions) -> Rule:
    from lit_attr.attribution.rules.integrated import Integrated

    return Integrated(options.integration_steps)


def _norm_secant(model: PreTrainedModel, location: Location, options: RuleOptions) -> Rule:
    from lit_attr.attribution.rules.frozen_norm import find_norms
    from lit_attr.attribution.rules.norm_secant import NormSecant, find_readers

    return NormSecant(find_readers(model, location, find_norms(model)))


def _exact(model: PreTrainedModel, location: Location, options: RuleOptions) -> Rule:
    from lit_attr.attribution.rules.exact import Exact

    return Exact()


ONE_PASS = "one forward and one backward pass for each batch"
_ENTRIES = (
    RuleEntry(
        name="gradient",
        title="gradient × activation",
        description="gradient × activation (Shrikumar et al., 2016, arXiv:1605.01713), unchanged",
        cost=ONE_PASS,
        needs="any causal language model",
        prepare=_gradient,
    ),
    RuleEntry(
        name="frozen-norm",
        title="gradient × activation, norms held",
        description="the denominators of LayerNorms and RMSNorms are constants: the LN-rule of Ali et al. (2022, "
        "arXiv:2202.07304)",
        cost=ONE_PASS,
        needs="every norm is a LayerNorm or an RMSNorm",
        prepare=_frozen_norm,
    ),
    RuleEntry(
        name="linearised",
        title="gradient × activation, linearised",
        description="as frozen-norm; an activation f(x) is also x times the constant f(x)/x, and each factor of a "
        "gated product gets half of the gradient, as in RelP (Jafari et al., 2025, arXiv:2508.21258)",
        cost=ONE_PASS,
        needs="MLPs are modules of their own, plain or gated; no experts",
        prepare=_linearised,
    ),
    RuleEntry(
        name="integrated",
        title="integrated gradient × activation",
        description="the mean gradient at the midpoints of equal parts of the path on which a layer's write at "
        "all tokens grows from zero to its value (Sundararajan et al., 2017, arXiv:1703.01365)",
        cost="one forward and one backward pass for each batch, layer and integration step",
        needs="any causal language model",
        prepare=_integrated,
    ),
    RuleEntry(
        name="norm-secant",
        title="gradient × activation, norms by secant",
        description="each norm that reads the residual stream contributes the exact change of its output without "
        "the write, as in DeepLIFT (Shrikumar et al., 2017, arXiv:1704.02685)",
        cost=ONE_PASS,
        needs="only LayerNorms and RMSNorms read the residual stream",
        prepare=_norm_secant,
    ),
    RuleEntry(
        name="exact",
        title="exact effect",
        description="no estimate: the fall of the logit difference when one write is replaced",
        cost="about a quarter of a forward pass for each layer and token",
        needs="any causal language model",
        prepare=_exact,
    ),
)
CATALOGUE: Mapping[str, RuleEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
