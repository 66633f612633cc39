"""Exact effects by whole forward passes, one for each row, layer and token, with independent hooks."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location


@torch.no_grad()
def logit_difference(model: PreTrainedModel, contrast: Contrast) -> float:
    logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1]
    return (logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]).item()


def expected_effects(
    model: PreTrainedModel, location: Location, contrast: Contrast, writes_LTH: Tensor | None = None
) -> Tensor:
    """The effects of a row by itself, with each cell replaced in its module's own output."""
    length = len(contrast.token_ids)
    effects_LT = torch.zeros(len(location.layers), length)
    clean = logit_difference(model, contrast)
    for place, module in enumerate(location.modules):
        for token in range(length):

            def replace(_, __, output, place=place, token=token):
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                hidden.view(length, -1)[token] = 0 if writes_LTH is None else writes_LTH[place, token]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            handle = module.register_forward_hook(replace)
            effects_LT[place, token] = clean - logit_difference(model, contrast)
            handle.remove()
    return effects_LT
