"""Exact effects by whole forward passes, one for each row, layer and token, with independent hooks."""

from __future__ import annotations

from functools import partial

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
    model: PreTrainedModel,
    location: Location,
    contrast: Contrast,
    writes_LTH: Tensor | None = None,
    *,
    window: int = 1,
) -> Tensor:
    """The effects of a row by itself, with each cell replaced in its module's own output.

    A window goes upwards over modules of the same component; where it ends above the top, the effect is 0.
    """
    length = len(contrast.token_ids)
    effects_LT = torch.zeros(len(location.layers), length)
    clean = logit_difference(model, contrast)
    for start, component in enumerate(location.components):
        places = [
            place for place in range(start, len(location.modules)) if location.components[place] == component
        ]
        if len(places) < window:
            continue
        for token in range(length):

            def replace(_, __, output, place=0, token=token):
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                hidden.view(length, -1)[token] = 0 if writes_LTH is None else writes_LTH[place, token]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            handles = [
                location.modules[place].register_forward_hook(partial(replace, place=place))
                for place in places[:window]
            ]
            effects_LT[start, token] = clean - logit_difference(model, contrast)
            for handle in handles:
                handle.remove()
    return effects_LT
