"""Integrated gradients, against gradients of models in which the write is a fraction of itself."""

from __future__ import annotations

import pytest
import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor

from lit_attr.attribution.catalogue import find_rule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.location import locate


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
def test_scores_use_the_mean_gradient_on_the_path(model_type: str):
    """Each point of the path is computed as a separate model whose write is scaled."""
    model = tiny_model(model_type, torch.float64)
    location, (contrast,) = locate(model), random_contrasts((5,))
    rule = find_rule(model, location, "integrated", steps=3)
    scores = attribute_batch(model, location, collate_contrasts([contrast]), rule=rule)
    for place, module in enumerate(location.modules):
        total: Tensor | float = 0.0
        for fraction in (1 / 6, 1 / 2, 5 / 6):
            kept: list[Tensor] = []

            def scale(_, __, output, kept=kept, fraction=fraction):
                kept.append(output)
                kept.append((output.detach() * fraction).requires_grad_())
                return kept[1]

            hook = module.register_forward_hook(scale)
            logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1]
            hook.remove()
            difference = logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]
            total = total + kept[0].detach() * torch.autograd.grad(difference, kept[1])[0] / 3
        expected_T = total.reshape(5, -1).sum(-1)
        torch.testing.assert_close(scores.scores_sum_BLT[0, place], expected_T, rtol=1e-5, atol=1e-9)
