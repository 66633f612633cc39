"""Scores and exact effects of real models under mean and resample ablation, against plain hooks.

Axes: L layers, T tokens of one row, H width.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from project import COUNTERFACT
from real_models import ALL, GEMMA, SMOLLM2, random_facts, real_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_attr.attribution.ablation import RESAMPLE, mean_ablation
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.attribution.scoring import Scoring, score_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.table.donors import with_donors
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.loading import load_model, load_tokenizer
from lit_attr.models.location import locate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.registry,
    pytest.mark.skipif(not COUNTERFACT.exists(), reason="donors are drawn from the real rows"),
]

# The module of each block whose output is what the MLP adds to the residual stream.
WRITES = {SMOLLM2: "mlp", GEMMA: "post_feedforward_layernorm"}
ROWS, SEED = 64 if ALL else 2, 17


def plain_writes_LTH(
    model: PreTrainedModel, modules: list[nn.Module], token_ids: tuple[int, ...], answers: tuple[int, int]
) -> tuple[Tensor, Tensor, float]:
    """The writes of one row, their gradients, and the logit difference."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handles = [module.register_forward_hook(keep) for module in modules]
    embedded_1TH = model.get_input_embeddings()(torch.tensor([token_ids])).detach().requires_grad_()
    logits_V = model(inputs_embeds=embedded_1TH, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    difference = logits_V[answers[0]] - logits_V[answers[1]]
    difference.backward()
    writes_LTH = torch.stack([write_1TH[0].detach() for write_1TH in kept])
    gradients_LTH = torch.stack([write_1TH.grad[0] for write_1TH in kept])
    return writes_LTH, gradients_LTH, difference.item()


@torch.no_grad()
def plain_effects_LT(
    model: PreTrainedModel, modules: list[nn.Module], contrast: Contrast, replaced_LTH: Tensor, clean: float
) -> Tensor:
    """Exact effects by whole forward passes: at each token, one version of the row for each layer."""
    effects = []
    for token in range(len(contrast.token_ids)):

        def replace(
            module: nn.Module, inputs: object, output: Tensor, layer: int = 0, token: int = token
        ) -> Tensor:
            changed = output.clone()
            changed[layer, token] = replaced_LTH[layer, token]
            return changed

        handles = [
            module.register_forward_hook(partial(replace, layer=layer)) for layer, module in enumerate(modules)
        ]
        logits_LV = model(
            torch.tensor([contrast.token_ids] * len(modules)), use_cache=False, logits_to_keep=1
        ).logits[:, -1]
        for handle in handles:
            handle.remove()
        effects.append(clean - (logits_LV[:, contrast.true_token_id] - logits_LV[:, contrast.false_token_id]))
    return torch.stack(effects, 1)


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA])
def test_scores_and_effects_are_those_of_plain_hooks(name: str):
    path = str(real_model(name))
    model, tokenizer = load_model(path).requires_grad_(False), load_tokenizer(path)
    pool, _ = build_contrasts(random_facts(10_000, SEED), tokenizer)
    contrasts = with_donors(pool[: 2 * ROWS], pool[2 * ROWS :])[0][:ROWS]
    assert len(contrasts) == ROWS
    modules = [getattr(block, WRITES[name]) for block in model.model.layers]
    location, batch = locate(model), collate_contrasts(contrasts)
    plain = [
        plain_writes_LTH(model, modules, each.token_ids, (each.true_token_id, each.false_token_id))
        for each in contrasts
    ]
    first_LH = torch.stack([writes_LTH[:, 0] for writes_LTH, _, _ in plain]).mean(0)
    later_LH = torch.cat([writes_LTH[:, 1:] for writes_LTH, _, _ in plain], 1).mean(1)
    for ablation in (mean_ablation(model, location, [batch]), RESAMPLE):
        scores_BLT = score_batch(model, location, batch, Scoring(ablation=ablation)).scores_sum_BLT
        effects_BLT = exact_effects_BLT(model, location, batch, ablation.replacement_BLTH(model, location, batch))
        errors = []
        for row, (contrast, (writes_LTH, gradients_LTH, clean)) in enumerate(zip(contrasts, plain, strict=True)):
            answers = contrast.true_token_id, contrast.false_token_id
            if ablation is RESAMPLE:
                replaced_LTH = plain_writes_LTH(model, modules, contrast.donor.token_ids, answers)[0]
            else:
                replaced_LTH = later_LH[:, None].repeat(1, writes_LTH.shape[1], 1)
                replaced_LTH[:, 0] = first_LH
            for found_BLT, expected_LT in (
                (scores_BLT, ((writes_LTH - replaced_LTH) * gradients_LTH).sum(-1)),
                (effects_BLT, plain_effects_LT(model, modules, contrast, replaced_LTH, clean)),
            ):
                error_LT = (found_BLT[row, :, : len(contrast.tokens)] - expected_LT).abs()
                errors.append(float(error_LT.max() / expected_LT.abs().max()))
        print(f"{name}, {ablation.name}: {ROWS} rows, seed {SEED}: largest error {max(errors):.2g} of the row's")
        assert max(errors) < 1e-4
