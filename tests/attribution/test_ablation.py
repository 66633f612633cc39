"""Scores and exact effects under mean and resample ablation, against plain hooks.

Axes: B contrasts, L layers, T tokens, H width.
"""

from __future__ import annotations

import pytest
import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from whole_forwards import expected_effects

from lit_attr.attribution.ablation import RESAMPLE, ZERO, Ablation, mean_ablation
from lit_attr.attribution.adaptive import attribute_adaptively, attribute_pilot, depth_of, estimate_batch
from lit_attr.attribution.catalogue import RuleName, find_rule
from lit_attr.attribution.comparison import compare_exactly
from lit_attr.attribution.error_model import Targets, fit
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.attribution.faithfulness import PERCENT
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.scoring import Scoring, score_batch
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast, Donor
from lit_attr.models.location import Location, locate

LENGTHS = (7, 3, 5, 7)
MAIN = ("gpt2", "llama", "gemma2", "gpt_neox", "opt", "bloom")


def with_donors(lengths: tuple[int, ...] = LENGTHS) -> list[Contrast]:
    """Contrasts with random donors of their own lengths."""
    twice = random_contrasts(lengths * 2)
    own, others = twice[: len(lengths)], twice[len(lengths) :]
    return [
        each._replace(donor=Donor(f"d{place}", other.token_ids))
        for place, (each, other) in enumerate(zip(own, others, strict=True))
    ]


def plain_run(
    model: PreTrainedModel, location: Location, token_ids: tuple[int, ...], answers: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """The writes [L, T, H] of one row, and the gradients of its logit difference there, by hooks of its own."""
    kept: list[Tensor] = []

    def keep(_, __, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_()
        kept.append(hidden)
        copy = hidden.clone()
        return (copy, *output[1:]) if isinstance(output, tuple) else copy

    hooks = [module.register_forward_hook(keep) for module in location.modules]
    logits_V = model(torch.tensor([token_ids]), use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    writes_LTH = torch.stack([hidden.detach().reshape(len(token_ids), -1) for hidden in kept])
    if answers is None:
        return writes_LTH, None
    gradients = torch.autograd.grad(logits_V[answers[0]] - logits_V[answers[1]], kept)
    return writes_LTH, torch.stack([each.reshape(len(token_ids), -1) for each in gradients])


def replaced_by(
    kind: str, model: PreTrainedModel, location: Location, contrasts: list[Contrast]
) -> tuple[Ablation, list[Tensor]]:
    """The ablation, and what it puts in the place of each contrast's writes, [L, T, H], by plain runs."""
    if kind == "resample":
        return RESAMPLE, [plain_run(model, location, each.donor.token_ids)[0] for each in contrasts]
    runs = [plain_run(model, location, each.token_ids)[0] for each in contrasts]
    first_LH = torch.stack([writes_LTH[:, 0] for writes_LTH in runs]).mean(0)
    later_LH = torch.cat([writes_LTH[:, 1:] for writes_LTH in runs], 1).mean(1)
    replaced = []
    for writes_LTH in runs:
        means_LTH = later_LH[:, None].repeat(1, writes_LTH.shape[1], 1)
        means_LTH[:, 0] = first_LH
        replaced.append(means_LTH)
    return mean_ablation(model, location, [collate_contrasts(contrasts)]), replaced


@pytest.mark.parametrize("kind", ["mean", "resample"])
@pytest.mark.parametrize("component", ["mlp", "attention"])
@pytest.mark.parametrize("model_type", MAIN)
def test_scores_and_effects_are_those_of_plain_hooks(model_type: str, component: str, kind: str):
    model = tiny_model(model_type)
    location, contrasts = locate(model, component=component), with_donors()
    ablation, replaced = replaced_by(kind, model, location, contrasts)
    assert ablation.name == kind
    batch = collate_contrasts(contrasts)
    found = score_batch(model, location, batch, Scoring(ablation=ablation))
    effects_BLT = exact_effects_BLT(model, location, batch, ablation.replacement_BLTH(model, location, batch))
    for row, (contrast, replaced_LTH) in enumerate(zip(contrasts, replaced, strict=True)):
        answers = contrast.true_token_id, contrast.false_token_id
        writes_LTH, gradients_LTH = plain_run(model, location, contrast.token_ids, answers)
        product_LTH = (writes_LTH - replaced_LTH) * gradients_LTH
        length = len(contrast.token_ids)
        for scores_BLT, expected_LT in (
            (found.scores_sum_BLT, product_LTH.sum(-1)),
            (found.scores_l2_BLT, product_LTH.norm(dim=-1)),
            (effects_BLT, expected_effects(model, location, contrast, replaced_LTH)),
        ):
            size = expected_LT.abs().max().item()
            torch.testing.assert_close(scores_BLT[row, :, :length], expected_LT, rtol=0, atol=1e-4 * size)
            assert not scores_BLT[row, :, length:].any()


def test_a_row_that_is_its_own_donor_changes_nothing():
    model = tiny_model("llama")
    location = locate(model)
    contrasts = [each._replace(donor=Donor("own", each.token_ids)) for each in random_contrasts(LENGTHS)]
    batch = collate_contrasts(contrasts)
    replacement_BLTH = RESAMPLE.replacement_BLTH(model, location, batch)
    zero_BLT = exact_effects_BLT(model, location, batch)
    own_BLT = exact_effects_BLT(model, location, batch, replacement_BLTH)
    assert own_BLT.abs().max() < 1e-5 * zero_BLT.abs().max()
    scores = score_batch(model, location, batch, Scoring(ablation=RESAMPLE))
    assert (
        scores.scores_sum_BLT.abs().max()
        < 1e-5 * attribute_batch(model, location, batch).scores_sum_BLT.abs().max()
    )


@pytest.mark.parametrize("name", ["integrated", "norm-secant", "exact"])
def test_rules_that_follow_the_last_norm_are_exact_in_the_last_layer(name: RuleName):
    model = tiny_model("llama", torch.float64)
    location, batch = locate(model, layers=-1), collate_contrasts(with_donors())
    rule = find_rule(model, location, name, steps=200 if name == "integrated" else 8)
    found_BLT = score_batch(model, location, batch, Scoring(rule, RESAMPLE)).scores_sum_BLT.double()
    replacement_BLTH = RESAMPLE.replacement_BLTH(model, location, batch)
    expected_BLT = exact_effects_BLT(model, location, batch, replacement_BLTH).double()
    torch.testing.assert_close(found_BLT, expected_BLT, rtol=0, atol=1e-4 * expected_BLT.abs().max().item())


@pytest.mark.parametrize("name", ["gradient", "frozen-norm", "linearised"])
def test_products_are_affine_in_what_replaces_the_write(name: RuleName):
    model = tiny_model("llama", torch.float64)
    location, batch = locate(model), collate_contrasts(with_donors())
    rule = find_rule(model, location, name)
    replacement_BLTH = RESAMPLE.replacement_BLTH(model, location, batch)
    none_BLT, once_BLT, twice_BLT = (
        attribute_batch(
            model, location, batch, rule=rule, replacement_BLTH=times * replacement_BLTH
        ).scores_sum_BLT
        for times in (0, 1, 2)
    )
    assert torch.equal(none_BLT, attribute_batch(model, location, batch, rule=rule).scores_sum_BLT)
    assert (once_BLT - none_BLT).abs().max() > 0.1 * none_BLT.abs().max()
    torch.testing.assert_close(twice_BLT - none_BLT, 2 * (once_BLT - none_BLT))


def test_curves_put_the_donors_writes_in_place():
    model = tiny_model("gpt2")
    location, (contrast,) = locate(model), with_donors((6,))
    found = compare_exactly(model, location, contrast, Scoring(ablation=RESAMPLE), place=0)
    assert found.ablation == "resample"
    # With 50% and fewer of 12 cells there is one ranking's top cell at 1%: the largest exact effect.
    largest = found.effects_LT.max().item()
    assert PERCENT[0] == 1 and found.curves is not None
    assert found.curves.comprehensiveness_BRP[0, 1, 0].item() == pytest.approx(largest, abs=1e-5)


def test_adaptive_runs_follow_the_ablation():
    model = tiny_model("gpt2")
    location, contrasts = locate(model), with_donors((6, 5, 6, 4, 7, 5))
    batch, scoring = collate_contrasts(contrasts), Scoring(ablation=RESAMPLE)
    replacement_BLTH = RESAMPLE.replacement_BLTH(model, location, batch)
    effects_BLT = exact_effects_BLT(model, location, batch, replacement_BLTH)
    pilot = attribute_pilot(model, location, batch, scoring)
    assert {each.ablation for each in pilot.exact} == {"resample"}
    torch.testing.assert_close(pilot.scores_sum_BLT, effects_BLT)
    estimates = estimate_batch(model, location, batch, scoring, replacement_BLTH).estimates
    known = [
        (estimate, each.effects_LT.double().numpy()) for estimate, each in zip(estimates, pilot.exact, strict=True)
    ]
    asked = fit(location.layers, depth_of(model, location), known, Targets(0.98))
    mixed = attribute_adaptively(model, location, batch, asked, scoring)
    is_exact_BLT = mixed.is_exact_BLT
    assert 0 < is_exact_BLT.sum() < sum(len(each.token_ids) for each in contrasts) * 2
    torch.testing.assert_close(mixed.scores_sum_BLT[is_exact_BLT], effects_BLT[is_exact_BLT])
    plain_BLT = score_batch(model, location, batch, scoring).scores_sum_BLT
    assert torch.equal(mixed.scores_sum_BLT[~is_exact_BLT], plain_BLT[~is_exact_BLT])


def test_shares_are_those_of_the_change():
    model = tiny_model("gpt2")
    location, contrasts = (
        locate(model),
        [each._replace(donor=Donor("own", each.token_ids)) for each in random_contrasts((5, 3))],
    )
    batch = collate_contrasts(contrasts)
    replacement_BLTH = RESAMPLE.replacement_BLTH(model, location, batch)
    for estimate in estimate_batch(model, location, batch, Scoring(ablation=RESAMPLE), replacement_BLTH).estimates:
        assert abs(estimate.share_LT).max() < 1e-5


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_two_components_in_one_pass_are_two_runs_to_the_bit(kind: str):
    model = tiny_model("llama")
    contrasts = with_donors()
    batch = collate_contrasts(contrasts)

    def scored(component: str | list[str]) -> Tensor:
        location = locate(model, component=component)
        ablation = RESAMPLE if kind == "resample" else mean_ablation(model, location, [batch])
        return score_batch(model, location, batch, Scoring(ablation=ablation)).scores_sum_BLT

    together_BLT = scored(["mlp", "attention"])
    assert torch.equal(together_BLT[:, ::2], scored("mlp"))
    assert torch.equal(together_BLT[:, 1::2], scored("attention"))


def test_resample_needs_donors():
    model = tiny_model("gpt2")
    batch = collate_contrasts(random_contrasts((3,)))
    with pytest.raises(UserError, match="^ablation: resample needs a donor for each contrast; use a Counterfact"):
        score_batch(model, locate(model), batch, Scoring(ablation=RESAMPLE))


def test_means_need_contrasts_and_one_width():
    model = tiny_model("gpt2")
    location = locate(model)
    with pytest.raises(UserError, match="^batches: no contrast has two tokens to take mean writes of; give more"):
        mean_ablation(model, location, [])
    wide = locate(model, component=["mlp", "transformer.h.{layer}.mlp.act"])
    with pytest.raises(UserError, match="^component: the outputs have the widths 32, 128; ablations other than"):
        mean_ablation(model, wide, [collate_contrasts(random_contrasts((3,)))])


def test_zero_ablation_replaces_by_nothing():
    model = tiny_model("gpt2")
    batch: ContrastBatch = collate_contrasts(random_contrasts((3,)))
    assert ZERO.replacement_BLTH(model, locate(model), batch) is None
