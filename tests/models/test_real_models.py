"""Scores of real models against plain hooks.

Axes: L layers, T tokens of one row, H width.
"""

from __future__ import annotations

import pytest
import torch
from real_models import ALL, GEMMA, SMOLLM2, random_facts, real_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.rows import Fact
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.loading import load_model, load_tokenizer
from lit_attr.models.location import locate

pytestmark = pytest.mark.registry

# The module of each block whose output is what the MLP adds to the residual stream.
WRITES = {SMOLLM2: "mlp", GEMMA: "post_feedforward_layernorm"}
ROWS, SEED = 64 if ALL else 6, 17


def plain_scores_LT(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fact: Fact, modules: list[nn.Module]
) -> Tensor:
    """Gradient × activation of one row by hooks, `retain_grad` and `backward`."""
    true, false = (
        tokenizer(fact.prompt + answer)["input_ids"] for answer in (fact.target_true, fact.target_false)
    )
    step = next(at for at, (one, other) in enumerate(zip(true, false, strict=False)) if one != other)
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handles = [module.register_forward_hook(keep) for module in modules]
    # Without gradients of the weights, which take most of the time.
    embedded_1TH = model.get_input_embeddings()(torch.tensor([true[:step]])).requires_grad_()
    logits_V = model(inputs_embeds=embedded_1TH, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    (logits_V[true[step]] - logits_V[false[step]]).backward()
    return torch.stack([(write_1TH * write_1TH.grad)[0].sum(-1).detach() for write_1TH in kept])


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA])
def test_scores_are_those_of_plain_hooks(name: str):
    path = str(real_model(name))
    model, tokenizer = load_model(path).requires_grad_(False), load_tokenizer(path)
    facts = random_facts(ROWS, SEED)
    contrasts, rejected = build_contrasts(facts, tokenizer)
    assert not rejected
    modules = [getattr(block, WRITES[name]) for block in model.model.layers]
    location, errors = locate(model), []
    for start in range(0, ROWS, 16):
        some = contrasts[start : start + 16]
        scores_BLT = attribute_batch(model, location, collate_contrasts(some)).scores_sum_BLT
        for contrast, scores_LT in zip(some, scores_BLT, strict=True):
            expected_LT = plain_scores_LT(model, tokenizer, contrast.fact, modules)
            assert expected_LT.shape == (len(modules), len(contrast.tokens))
            error_LT = (scores_LT[:, : len(contrast.tokens)] - expected_LT).abs()
            errors.append(float(error_LT.max() / expected_LT.abs().max()))
    print(f"{name}: {ROWS} rows, seed {SEED}: largest error {max(errors):.2g} of the row's largest score")
    assert max(errors) < 1e-4
