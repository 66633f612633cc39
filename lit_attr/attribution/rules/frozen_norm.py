"""The rule `frozen-norm`: the denominators of norms are constants in the backward pass.

This is the LN-rule of Ali et al. (2022, arXiv:2202.07304).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.gradient import Gradient
from lit_attr.errors import ArgumentError
from lit_attr.models.hooks import calling, inputs_recorded
from lit_attr.models.nonlinearities.norms import Norm, is_norm, read_norm
from lit_attr.models.selftest import short_input_BT


@dataclass(frozen=True, eq=False)
class FrozenNorm(Gradient):
    """Gradient × activation with the denominators of norms held.

    Attributes:
        norms: The model's norms.
    """

    name: ClassVar[RuleName] = "frozen-norm"
    norms: Mapping[nn.Module, Norm]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the denominators."""
        with ExitStack() as stack:
            for module, norm in self.norms.items():
                stack.enter_context(calling(module, norm.holding_denominators(module.forward)))
            yield


@torch.no_grad()
def find_norms(model: PreTrainedModel) -> dict[nn.Module, Norm]:
    """Identifies the norms that run in a forward pass.

    Args:
        model: A causal language model, in eval mode.

    Raises:
        ArgumentError: There is no norm, or one that is neither a LayerNorm nor an RMSNorm.
    """
    named = [(name, module) for name, module in model.named_modules() if is_norm(module)]
    with inputs_recorded([module for _, module in named]) as inputs:
        model(input_ids=short_input_BT(model), use_cache=False)
    norms = {
        module: read_norm(module, given, name)
        for (name, module), given in zip(named, inputs, strict=True)
        if given.numel()  # an empty input: the norm did not run
    }
    if not norms:
        raise ArgumentError("rule", "this model has no norms; choose gradient or integrated")
    return norms
