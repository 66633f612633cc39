"""Batches with exact effects in some cells, against plain passes and hooks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from architectures import CONFIGS, random_contrasts, tiny_model
from whole_forwards import expected_effects

from lit_attr.attribution import adaptive
from lit_attr.attribution.adaptive import attribute_adaptively, attribute_pilot, depth_of, estimate_batch
from lit_attr.attribution.catalogue import RuleName, find_rule
from lit_attr.attribution.error_model import ErrorModel, Targets, fit
from lit_attr.attribution.exact.effects import ResolvedEffects, exact_effects_BLT, resolved_effects
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.scoring import Scoring
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.models.location import Location, locate

LENGTHS = (7, 3, 5, 1, 7)


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> ContrastBatch:
    return collate_contrasts(random_contrasts(lengths))


def error_model(location: Location, depth: int, threshold: float) -> ErrorModel:
    """Asks for cells whose gradient × activation has a norm, raised to the cell's cost, above a threshold."""
    layers = len(location.layers)
    weights_K = np.zeros(3 * layers + 13)
    weights_K[0] = 1
    thresholds_L = np.full(layers, threshold)
    return ErrorModel(location.layers, depth, weights_K, thresholds_L, 0.9, np.full(layers, 0.9), 1.0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("name", ["gradient", "norm-secant"])
def test_cells_are_exact_where_asked_for_and_the_rules_elsewhere(architecture: str, name: RuleName):
    model = tiny_model(architecture)
    location, batch = locate(model), batch_of()
    rule = find_rule(model, location, name)
    plain = attribute_batch(model, location, batch, rule=rule)
    norms_BLT = attribute_batch(model, location, batch).scores_l2_BLT
    asked = error_model(location, len(location.layers), norms_BLT[norms_BLT > 0].median().item())
    found = attribute_adaptively(model, location, batch, asked, Scoring(rule))
    assert found.is_exact_BLT.dtype == torch.bool
    exact = estimated = 0
    for row, contrast in enumerate(batch.contrasts):
        width = len(contrast.token_ids)
        is_exact_LT = found.is_exact_BLT[row, :, :width]
        assert not found.is_exact_BLT[row, :, width:].any()
        effects_LT = expected_effects(model, location, contrast)
        scores_LT = found.scores_sum_BLT[row, :, :width]
        size = effects_LT.abs().max().item()
        torch.testing.assert_close(scores_LT[is_exact_LT], effects_LT[is_exact_LT], rtol=0, atol=1e-5 * size)
        assert torch.equal(scores_LT[~is_exact_LT], plain.scores_sum_BLT[row, :, :width][~is_exact_LT])
        exact, estimated = exact + int(is_exact_LT.sum()), estimated + int((~is_exact_LT).sum())
    assert exact > 10 and estimated > 10
    if plain.scores_l2_BLT is not None:
        assert torch.equal(found.scores_l2_BLT, plain.scores_l2_BLT)
    for name_of_answer in ("logit_true_B", "logit_false_B", "rank_true_B"):
        assert torch.equal(found._asdict()[name_of_answer], plain._asdict()[name_of_answer])


@pytest.mark.parametrize("architecture", sorted({*CONFIGS} - {"gpt2", "llama", "gemma2", "gpt_neox"}))
def test_estimates_of_a_recorded_pass_are_the_plain_ones_to_the_bit(architecture: str):
    model = tiny_model(architecture)
    location, batch = locate(model), batch_of()
    plain = attribute_batch(model, location, batch)
    found = estimate_batch(model, location, batch)
    assert torch.equal(found.scores.scores_sum_BLT, plain.scores_sum_BLT)
    assert torch.equal(found.scores.logit_true_B, plain.logit_true_B)
    wanted_BLT = plain.scores_l2_BLT > plain.scores_l2_BLT.median()
    shared_BLT = exact_effects_BLT(model, location, batch, wanted_BLT=wanted_BLT)
    effects = resolved_effects(model, location, batch, wanted_BLT=wanted_BLT, clean=found.clean)
    size = shared_BLT.abs().max().item()
    torch.testing.assert_close(effects.effects_BLT, shared_BLT, rtol=0, atol=1e-5 * size)
    assert found.clean is not None


def test_a_model_without_a_cache_is_estimated_and_computed_as_any_other():
    model = tiny_model("gpt2")
    location, batch = locate(model), batch_of()
    plain = attribute_batch(model, location, batch)
    asked = error_model(location, 2, plain.scores_l2_BLT[plain.scores_l2_BLT > 0].median().item())
    expected = attribute_adaptively(model, location, batch, asked)

    class WithoutCache(type(model)):
        def forward(self, *args: object, past_key_values: object = None, **kwargs: object) -> object:
            if past_key_values is not None:
                raise TypeError("this model has no cache")
            return super().forward(*args, **kwargs)

    model.__class__ = WithoutCache
    assert estimate_batch(model, location, batch).clean is None
    found = attribute_adaptively(model, location, batch, asked)
    assert torch.equal(found.is_exact_BLT, expected.is_exact_BLT)
    torch.testing.assert_close(found.scores_sum_BLT, expected.scores_sum_BLT, rtol=1e-4, atol=1e-6)


def test_a_contrast_has_the_same_exact_cells_alone():
    model = tiny_model("llama")
    location, batch = locate(model), batch_of()
    norms_BLT = attribute_batch(model, location, batch).scores_l2_BLT
    asked = error_model(location, 2, norms_BLT[norms_BLT > 0].median().item())
    together = attribute_adaptively(model, location, batch, asked)
    for row, contrast in enumerate(batch.contrasts):
        alone = attribute_adaptively(model, location, collate_contrasts([contrast]), asked)
        width = len(contrast.token_ids)
        assert torch.equal(alone.is_exact_BLT[0], together.is_exact_BLT[row, :, :width])


def keep_output(kept: list[torch.Tensor], _: object, __: object, output: torch.Tensor | tuple) -> None:
    kept.append(output[0] if isinstance(output, tuple) else output)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "gpt_neox", "opt"])
def test_shares_of_the_residual_stream_are_those_of_plain_hooks(architecture: str):
    model = tiny_model(architecture)
    location, batch = locate(model), batch_of()
    estimates = estimate_batch(model, location, batch).estimates
    for contrast, estimate in zip(batch.contrasts, estimates, strict=True):
        writes: list[torch.Tensor] = []
        keep = partial(keep_output, writes)
        hooks = [module.register_forward_hook(keep) for module in location.modules]
        with torch.no_grad():
            # The stream after a block, by transformers' own record; that after the last one is normalised.
            states = model(torch.tensor([contrast.token_ids]), output_hidden_states=True).hidden_states
        for hook in hooks:
            hook.remove()
        for place in range(len(location.layers) - 1):
            write_TH = writes[place].reshape(len(contrast.token_ids), -1)
            expected_T = write_TH.norm(dim=-1) / states[place + 1][0].norm(dim=-1)
            torch.testing.assert_close(
                torch.from_numpy(estimate.share_LT[place]).float(), expected_T, rtol=1e-4, atol=1e-6
            )
        assert estimate.share_LT[-1, -1] > 0


def test_a_pilot_is_exact_in_every_cell_and_an_error_model_can_be_fitted_to_it():
    model = tiny_model("gpt2")
    location, batch = locate(model), batch_of((6, 5, 6, 4, 7, 5))
    found = attribute_pilot(model, location, batch._replace(places=(3, 1, 0, 2, 4, 5)))
    assert [each.place for each in found.exact] == [3, 1, 0, 2, 4, 5]
    for row, (contrast, effects) in enumerate(zip(batch.contrasts, found.exact, strict=True)):
        expected_LT = expected_effects(model, location, contrast)
        size = expected_LT.abs().max().item()
        torch.testing.assert_close(effects.effects_LT, expected_LT, rtol=0, atol=1e-5 * size)
        width = len(contrast.token_ids)
        assert torch.equal(found.scores_sum_BLT[row, :, :width], effects.effects_LT)
        assert found.is_exact_BLT[row, :, :width].all() and not found.is_exact_BLT[row, :, width:].any()
        assert effects.is_pilot and effects.refused is None and effects.curves is None
    estimates = estimate_batch(model, location, batch).estimates
    pilot = [
        (each, effects.effects_LT.double().numpy()) for each, effects in zip(estimates, found.exact, strict=True)
    ]
    asked = fit(location.layers, depth_of(model, location), pilot, Targets(0.99))
    mixed = attribute_adaptively(model, location, batch, asked)
    scores, effects_N = (
        torch.cat(
            [values_BLT[row, :, : len(each.token_ids)].flatten() for row, each in enumerate(batch.contrasts)]
        )
        for values_BLT in (mixed.scores_sum_BLT, found.scores_sum_BLT)
    )
    assert torch.corrcoef(torch.stack([scores, effects_N]))[0, 1] > 0.97
    assert not mixed.is_exact_BLT.all()


def test_effects_that_are_not_finite_leave_the_estimates(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("gpt2")
    location, batch = locate(model), batch_of((4, 4))
    plain = attribute_batch(model, location, batch)
    effects_BLT = torch.full((2, len(location.layers), 4), torch.inf)
    monkeypatch.setattr(adaptive, "resolved_effects", lambda *_: ResolvedEffects(effects_BLT, torch.zeros(2)))
    found = attribute_pilot(model, location, batch)
    assert {each.refused for each in found.exact} == {
        "its exact effects are not finite; the dtype float32 may fix it"
    }
    assert torch.equal(found.scores_sum_BLT, plain.scores_sum_BLT)
    assert not found.is_exact_BLT.any()
