"""The norms' exact changes, against their definition with norms listed by hand, and against exact effects."""

from __future__ import annotations

import re

import pytest
import torch
from architectures import CONFIGS, random_contrasts, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from whole_forwards import expected_effects

from lit_attr.attribution.catalogue import find_rule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location, locate

# A pattern for the paths of the norms that read the stream, and the factor of a write before it is added.
READERS = {
    "gpt2": (r"ln_1|ln_2|ln_f", 1.0),
    "llama": (r"input_layernorm|post_attention_layernorm|model\.norm", 1.0),
    "gpt_neox": (r"input_layernorm|post_attention_layernorm|final_layer_norm", 1.0),
    "gemma2": (r"input_layernorm|pre_feedforward_layernorm|model\.norm", 1.0),
    "granite": (r"input_layernorm|post_attention_layernorm|model\.norm", 0.22),
}
# It has no norm before attention.
UNLIKE = {"olmo2"}


def by_definition(
    model: PreTrainedModel, location: Location, contrast: Contrast, paths: str, factor: float
) -> Tensor:
    """The scores from running each reader again without the write, with PyTorch's gradients."""
    norms = [(name, module) for name, module in model.named_modules() if re.search(rf"({paths})$", name)]
    inputs, outputs, writes, hooks = {}, {}, {}, []

    def keep_write(module, _, output):
        writes[module] = (output[0] if isinstance(output, tuple) else output).detach().squeeze(0)

    def keep(module, args, output):
        inputs[module] = args[0].detach().squeeze(0)
        outputs[module] = output if output.requires_grad else output.requires_grad_()

    hooks = [module.register_forward_hook(keep_write) for module in location.modules]
    hooks += [module.register_forward_hook(keep) for _, module in norms]
    logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    difference = logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]
    gradients = torch.autograd.grad(difference, [outputs[module] for _, module in norms], allow_unused=True)
    scores = torch.zeros(len(location.layers), len(contrast.token_ids), dtype=torch.float64)
    for place, (layer, writer) in enumerate(zip(location.layers, location.modules, strict=True)):
        for (name, norm), gradient in zip(norms, gradients, strict=True):
            number = re.search(r"\.(\d+)\.", name)
            if gradient is not None and (number is None or int(number[1]) > layer):
                with torch.no_grad():
                    change = norm(inputs[norm]) - norm(inputs[norm] - factor * writes[writer])
                scores[place] += (gradient.squeeze(0) * change).sum(-1).double()
    return scores


@pytest.mark.parametrize("model_type", READERS)
def test_scores_are_as_defined(model_type: str):
    model = tiny_model(model_type, torch.float64)
    location, contrasts = locate(model), random_contrasts((7, 4, 1))
    rule = find_rule(model, location, "norm-secant")
    scores = attribute_batch(model, location, collate_contrasts(contrasts), rule=rule)
    assert scores.rule == "norm-secant" and scores.scores_l2_BLT is None
    for row, contrast in enumerate(contrasts):
        length = len(contrast.token_ids)
        expected_LT = by_definition(model, location, contrast, *READERS[model_type])
        found_LT = scores.scores_sum_BLT[row, :, :length]
        size = expected_LT.abs().max().item()
        # Norms and softmaxes of transformers compute in float32.
        torch.testing.assert_close(found_LT, expected_LT, rtol=0, atol=1e-5 * size)
        assert not scores.scores_sum_BLT[row, :, length:].any()


@pytest.mark.parametrize("model_type", sorted(set(CONFIGS) - UNLIKE - {"xglm"}))
def test_the_last_layer_is_exact(model_type: str):
    """Only a norm comes after the last MLP, so its secant is the whole effect.

    Gemma 2's soft capping of the logits comes after that.
    """
    model = tiny_model(model_type, torch.float64)
    if model_type == "gemma2":
        model.config.final_logit_softcapping = None
    location, contrasts = locate(model, layers=-1), random_contrasts((6, 3))
    rule = find_rule(model, location, "norm-secant")
    scores = attribute_batch(model, location, collate_contrasts(contrasts), rule=rule)
    for row, contrast in enumerate(contrasts):
        length = len(contrast.token_ids)
        expected_LT = expected_effects(model, location, contrast)
        found_LT = scores.scores_sum_BLT[row, :, :length].float()
        # In float32, as the effects are.
        torch.testing.assert_close(found_LT, expected_LT, rtol=0, atol=1e-4 * expected_LT.abs().max().item())


def test_rejects_a_norm_that_runs_twice():
    model = tiny_model("gpt2")
    block = model.transformer.h[1]
    block.ln_2 = block.ln_1
    with pytest.raises(UserError, match="^rule: a norm runs twice in a forward pass; choose another rule"):
        find_rule(model, locate(model), "norm-secant")


@pytest.mark.parametrize(
    ("model_type", "component"), [("olmo2", "mlp"), ("gpt2", "block"), ("gpt2", "transformer.h.{layer}.mlp.act")]
)
def test_rejects_models_with_other_readers_of_the_write(model_type: str, component: str):
    model = tiny_model(model_type)
    with pytest.raises(UserError, match="^rule: not only the norms of .* read the residual stream"):
        find_rule(model, locate(model, component=component), "norm-secant")
