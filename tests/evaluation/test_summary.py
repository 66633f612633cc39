"""The summary of a run, computed from its records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pytest
import torch
from sealed import write_batch
from transformers import PreTrainedModel

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import AttributionBatch
from lit_attr.errors import UserError
from lit_attr.evaluation.component import MOST_POINTS
from lit_attr.evaluation.effects import Sample, Sums, mean_effects
from lit_attr.evaluation.strongest import all_exact, has_effects, mean_text, strongest_at, strongest_cells
from lit_attr.evaluation.summary import summarise
from lit_attr.evaluation.validity.agreement import Compared, agreement_report
from lit_attr.evaluation.validity.faithfulness import faithfulness_report
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast, random_order
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.facts.rows import Rejected
from lit_attr.models.location import locate
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import ComponentScores, Example


@pytest.fixture
def scored(demo_model: PreTrainedModel, sample_contrasts: list[Contrast]) -> AttributionBatch:
    batch = attribute_batch(demo_model, locate(demo_model), collate_contrasts(sample_contrasts[::40]))
    # The demo model knows all of these facts.
    return batch._replace(rank_true_B=torch.arange(len(batch.contrasts)) % 3)


def summary_of(folder: Path, batch: AttributionBatch) -> dict:
    run = RunFolder(folder)
    run.open({"model": {}, "data": {"step": "divergence"}}, [])
    run.write_batch(batch_record(batch))
    return summarise(run).summary


def test_counts_the_records_of_a_batch(scored: AttributionBatch, tmp_path: Path):
    summary = summary_of(tmp_path, scored)
    differences = (scored.logit_true_B - scored.logit_false_B).tolist()
    known = (scored.rank_true_B == 0).sum().item()
    assert 0 < known < len(differences)
    assert (summary["format"], summary["version"], summary["rejected"]) == ("lit-attr/summary", 2, 0)
    assert summary["contrasts"] == len(differences)
    assert summary["contrast_accuracy"] == sum(each > 0 for each in differences) / len(differences)
    assert (summary["known"], summary["known_share"]) == (known, known / len(differences))
    assert summary["median_logit_diff"] == pytest.approx(np.median(differences))
    assert summary["agreement"] is None
    assert orjson.loads(orjson.dumps(summary)) == summary
    for name, rows in (
        ("profile", range(len(differences))),
        ("known_profile", [row for row, rank in enumerate(scored.rank_true_B.tolist()) if rank == 0]),
    ):
        profile = summary[name]
        assert profile["contrasts"][MEAN_ROLES.index("last")] == len(rows)
        for place in range(len(scored.layers)):
            at_last = [scored.scores_sum_BLT[row, place, len(scored.contrasts[row].tokens) - 1] for row in rows]
            mean = profile["mean_score"][place][MEAN_ROLES.index("last")]
            assert mean == pytest.approx(np.mean(at_last), rel=1e-5)
            error = profile["standard_error"][place][MEAN_ROLES.index("last")]
            assert error == pytest.approx(np.std(at_last, ddof=1) / np.sqrt(len(rows)), rel=1e-4, abs=1e-7)


def test_profile_of_one_contrast_is_its_scores(scored: AttributionBatch, tmp_path: Path):
    profile = summary_of(tmp_path, scored.select([0]))["profile"]
    last = len(scored.contrasts[0].tokens) - 1
    means = [row[MEAN_ROLES.index("last")] for row in profile["mean_score"]]
    assert means == pytest.approx(scored.scores_sum_BLT[0, :, last].tolist())


def test_known_facts_have_a_profile_of_their_own(scored: AttributionBatch, tmp_path: Path):
    rank_true_B = torch.tensor([0] + [1] * (len(scored.contrasts) - 1))
    found = summary_of(tmp_path / "every", scored._replace(rank_true_B=rank_true_B))["known_profile"]
    assert found == summary_of(tmp_path / "first", scored.select([0]))["profile"]


def test_a_token_against_itself_is_not_counted(scored: AttributionBatch, tmp_path: Path):
    same = scored.contrasts[0]._replace(false_token_id=scored.contrasts[0].true_token_id)
    summary = summary_of(tmp_path, scored._replace(contrasts=(same, *scored.contrasts[1:])))
    assert summary["contrasts"] == len(scored.contrasts) - 1


def test_a_run_without_contrasts_has_a_summary(tmp_path: Path):
    folder = RunFolder(tmp_path)
    settings = {"layers": [2, 5], "component": "block", "rule": "linearised"}
    folder.open({"model": settings, "data": {}}, [Rejected(0, 0, "no subject")])
    found = summarise(folder, heatmap_ids=["a"], spread=3, largest=3)
    summary = found.summary
    assert (summary["contrasts"], summary["contrast_accuracy"], summary["rejected"]) == (0, None, 1)
    assert summary["median_logit_diff"] is None
    assert {name: summary["profile"][name] for name in settings} == settings
    assert summary["profile"]["mean_score"] == [[None] * len(MEAN_ROLES)] * 2
    assert (found.spread, found.largest, found.not_found) == ([], [], ["a"])
    assert found.components["block"].points is None
    # A stranger's module may have no settings.
    stranger = RunFolder(tmp_path / "stranger")
    stranger.open({"model": {"class": "Module"}, "data": {}}, [])
    assert summarise(stranger).summary["profile"]["layers"] == []


def test_agreement_is_that_of_the_contrasts_with_exact_effects(
    make_run: Callable, drawn: Callable, exact_of: Callable
):
    examples = drawn(12)
    exact = [exact_of(examples[row], place) for place, row in enumerate((7, 2, 9))]
    exact.append(exact_of(examples[4], 3, refused="not finite"))
    exact.append(exact_of(examples[5], 4, curves=False))
    folder = make_run(examples, exact)
    found = summarise(folder)
    agreement = found.summary["agreement"]
    assert (agreement["contrasts"], agreement["sample"], agreement["ablation"]) == (4, "random", "zero")
    compared = [
        Compared(each.scores["mlp"].sum, record.effects["mlp"], each.roles, each.subject_span, each.id)
        for each, record in ((examples[record.id], record) for record in exact if record.refused is None)
    ]
    # Rows 7, 2, 9, 5: their resolutions are 0.01, 0.02, 0 and 0.02.
    expected = agreement_report([0, 1, 2], compared, 0.015)
    expected |= {"sample": "random", "faithfulness": faithfulness_report([each.curves for each in exact[:3]])}
    assert agreement == expected
    scores_N = np.concatenate([each.scores_LT.ravel() for each in compared])
    np.testing.assert_array_equal(found.components["mlp"].points.scores_N, scores_N)
    np.testing.assert_array_equal(
        found.components["mlp"].points.effects_N, np.concatenate([each.effects_LT.ravel() for each in compared])
    )
    assert found.components["mlp"].points.layers_N.tolist() == [
        layer for each in compared for layer in range(3) for _ in range(each.scores_LT.shape[1])
    ]


def test_a_sample_without_places_makes_no_claim_about_the_run(
    make_run: Callable, drawn: Callable, exact_of: Callable
):
    examples = drawn(3)
    folder = make_run(
        examples, [exact_of(examples[0], None, curves=False), exact_of(examples[1], 0, curves=False)]
    )
    agreement = summarise(folder).summary["agreement"]
    assert agreement["sample"] == "first seen"
    assert "faithfulness" not in agreement


def test_refused_exact_effects_are_no_agreement(make_run: Callable, drawn: Callable, exact_of: Callable):
    examples = drawn(2)
    folder = make_run(examples, [exact_of(examples[0], 0, refused="not finite")])
    found = summarise(folder)
    assert (found.summary["agreement"], found.components["mlp"].points) == (None, None)


def test_a_picture_gets_a_bounded_number_of_cells(
    make_run: Callable, drawn: Callable, exact_of: Callable, monkeypatch: pytest.MonkeyPatch
):
    assert MOST_POINTS == 20_000
    monkeypatch.setattr("lit_attr.evaluation.component.MOST_POINTS", 40)
    examples = drawn(6)
    folder = make_run(examples, [exact_of(each, place) for place, each in enumerate(examples)])
    points = summarise(folder).components["mlp"].points
    assert [len(each) for each in points] == [40, 40, 40]
    first = examples[0].scores["mlp"].sum
    np.testing.assert_array_equal(points.scores_N[: first.size], first.ravel())


def test_how_contrasts_are_spread_over_files_does_not_matter(
    make_run: Callable, drawn: Callable, exact_of: Callable
):
    """To the last bit, as after an interruption and with any number of processes."""
    examples = drawn(40)
    exact = [exact_of(each, place) for place, each in enumerate(examples[10:20])]
    asked = {"heatmap_ids": [3, 30, 99], "spread": 5, "largest": 5}
    runs = [
        make_run(examples, exact, sizes=[40], name="one"),
        make_run(examples[::-1], exact[::-1], sizes=[13, 20, 7], name="three"),
        make_run([*examples[20:], *examples[:20]], exact, sizes=[1] * 40, name="forty"),
    ]
    found = [summarise(run, **asked) for run in runs]
    for other in found[1:]:
        assert other.summary == found[0].summary
        assert other.components["mlp"].relations == found[0].components["mlp"].relations
        assert other.not_found == [99]
        for name in ("spread", "asked_for", "largest", "strongest", "failures"):
            ours, theirs = ([each["id"] for each in getattr(every, name)] for every in (other, found[0]))
            assert ours == theirs
        points = (every.components["mlp"].points for every in (other, found[0]))
        for ours_N, theirs_N in zip(*points, strict=True):
            np.testing.assert_array_equal(ours_N, theirs_N)


@pytest.mark.parametrize("setting", ["all", None])
def test_contrasts_of_one_fact_are_one_cluster(make_run: Callable, example: Example, setting: str | None):
    """Three facts of 3, 1 and 2 contrasts in files of any order; a setting that is not known may be `all`."""

    def contrast(fact: str, step: int, score: float, rank: int) -> Example:
        scores_LT = np.zeros_like(example.scores["mlp"].sum)
        scores_LT[0, -1] = score
        changes = {"relation_id": "P" + fact, "scores": {"mlp": ComponentScores(scores_LT)}, "rank_true": rank}
        return msgspec.structs.replace(example, id=fact, step=step, **changes)

    contrasts = [
        *(contrast("a", 0, 1, 0), contrast("c", 0, 8, 0), contrast("b", 0, 4, 5)),
        *(contrast("c", 1, 0, 3), contrast("a", 2, 3, 0), contrast("a", 1, 2, 1)),
    ]
    found = summarise(make_run(contrasts, sizes=[2, 1, 3], step=setting))
    profile, known, last = found.summary["profile"], found.summary["known_profile"], MEAN_ROLES.index("last")
    assert (profile["facts"][last], profile["contrasts"][last]) == (3, 6)
    assert profile["mean_score"][0][last] == 3
    # Totals 6, 4 and 8 less 3 a contrast: -3, 1 and 2; √(3/2 · (9 + 1 + 4)) / 6.
    assert profile["standard_error"][0][last] == pytest.approx(21**0.5 / 6)
    # Known: 1 and 3 of a, 8 of c, mean 4: -4 and 4; √(2 · 32) / 3.
    assert (known["facts"][last], known["contrasts"][last], known["mean_score"][0][last]) == (2, 3, 4)
    assert known["standard_error"][0][last] == pytest.approx(8 / 3)
    relations = found.components["mlp"].relations
    assert {name: each["contrasts"][last] for name, each in relations.items()} == {"Pa": 3, "Pb": 1, "Pc": 2}
    assert relations["Pa"]["standard_error"][0][last] is None


def test_the_order_of_files_does_not_matter_to_facts_of_several_contrasts(make_run: Callable, drawn: Callable):
    examples = [
        msgspec.structs.replace(each, id=each.id // 3, step=each.id % 3, relation_id="P1") for each in drawn(60)
    ]
    runs = [
        make_run(examples, step="all", name="one"),
        make_run(examples[::-1], step="all", name="reversed"),
        make_run([*examples[1::2], *examples[::2]], sizes=[31, 29], step="all", name="two"),
    ]
    first, *others = [summarise(run).summary for run in runs]
    assert first["profile"]["facts"][-1] < first["profile"]["contrasts"][-1]
    for other in others:
        assert (other["profile"], other["known_profile"]) == (first["profile"], first["known_profile"])


def in_order(examples: list[Example], seed: int = 0) -> list[Example]:
    """The contrasts in a run's random order."""
    of_key = {(each.id, each.step): each for each in examples}
    return [of_key[key] for key in random_order(of_key, seed)]


def without_effects(profile: dict) -> bool:
    return profile["sampled"] == [0] * 8 and all(mean is None for row in profile["mean_effect"] for mean in row)


@pytest.mark.parametrize("seed", [0, 5])
def test_mean_effects_come_from_the_random_sample(
    make_run: Callable, drawn: Callable, exact_of: Callable, seed: int
):
    """For all contrasts, the known ones, and each relation."""
    examples = in_order(drawn(80), seed)
    exact = [exact_of(each, place, curves=False) for place, each in enumerate(examples[:40])]
    found = summarise(make_run(examples, exact, model={"sample_seed": seed}))
    last = MEAN_ROLES.index("last")
    groups = {
        "profile": (found.summary["profile"], lambda each: True),
        "known": (found.summary["known_profile"], lambda each: each.rank_true == 0),
        "P2": (found.components["mlp"].relations["P2"], lambda each: each.relation_id == "P2"),
    }
    for profile, belongs in groups.values():
        group = [each for each in examples if belongs(each) and each.roles[-1] == "last"]
        sampled = [each for each in group if each in examples[:40]]
        assert profile["sampled"][last] == len(sampled) >= 8
        effects = {record.id: record.effects["mlp"] for record in exact}
        scores, scores_of_all = ([each.scores["mlp"].sum[0, -1] for each in part] for part in (sampled, group))
        expected = mean_effects(
            Sums(np.sum(scores_of_all).reshape(1, 1, 1), np.array([len(group)])),
            Sample(
                np.reshape(scores, (-1, 1, 1, 1)),
                np.reshape([effects[each.id][0, -1] for each in sampled], (-1, 1, 1, 1)),
                np.ones((len(sampled), 1), dtype=int),
            ),
            Sums(np.zeros((1, 1, 1)), np.array([0])),
        )
        ours = [profile[name][0][last] for name in ("mean_effect", "interval_low", "interval_high")]
        assert ours == pytest.approx([each.item() for each in expected])


def test_a_sample_ends_at_the_first_contrast_without_exact_effects(
    make_run: Callable, drawn: Callable, exact_of: Callable
):
    """What an extended run has of the sample of fewer rows is not random."""
    examples = in_order(drawn(60))
    records = [exact_of(each, place, curves=False) for place, each in enumerate(examples)]
    random = summarise(make_run(examples, records[:20], name="random")).summary
    extended = summarise(make_run(examples, [*records[:20], *records[30:40]], name="extended")).summary
    assert extended["profile"] == random["profile"]
    assert extended["agreement"]["contrasts"] == 30
    # One that is refused has been replaced by the next one.
    refused = exact_of(examples[7], 7, refused="not finite")
    replaced = [*records[:7], refused, *records[8:21]]
    profile = summarise(make_run(examples, replaced, name="refused")).summary["profile"]
    assert profile["sampled"][0] == 20


def test_the_first_seen_say_nothing_about_the_rest(make_run: Callable, drawn: Callable, exact_of: Callable):
    examples = in_order(drawn(20))
    summary = summarise(make_run(examples, [exact_of(each, None) for each in examples[:12]])).summary
    assert summary["agreement"]["contrasts"] == 12
    assert without_effects(summary["profile"]) and without_effects(summary["known_profile"])


def test_a_pilot_judges_nothing(make_run: Callable, drawn: Callable, exact_of: Callable):
    """It counts in the means as what it is."""
    examples = in_order(drawn(30))
    records = [exact_of(each, place, curves=False) for place, each in enumerate(examples[:16])]
    pilot = [msgspec.structs.replace(each, is_pilot=True) for each in records[:4]]
    summary = summarise(make_run(examples, [*pilot, *records[4:]])).summary
    assert (summary["agreement"]["contrasts"], summary["profile"]["sampled"][0]) == (12, 16)
    alone = summarise(make_run(examples[4:], records[4:], name="alone")).summary
    mean, without = (each["profile"]["mean_effect"][1][0] for each in (summary, alone))
    of_pilot = np.mean([each.effects["mlp"][1, 0] for each in pilot])
    assert mean == pytest.approx((26 * without + 4 * of_pilot) / 30)
    only = summarise(make_run(examples[:4], pilot, name="only")).summary
    assert only["agreement"] is None
    assert only["profile"]["mean_effect"][1][0] == pytest.approx(of_pilot)


@pytest.mark.parametrize("change", [{"rule": "linearised"}, {"layers": [0, 1, 5]}])
def test_refuses_files_that_do_not_belong_together(make_run: Callable, example: Example, change: dict):
    folder = make_run([example])
    (path,) = folder.batches.iterdir()
    batch = orjson.loads(path.read_bytes())
    batch["examples"][0]["id"] = 9999
    other = write_batch(folder.path, {**batch, **change})
    with pytest.raises(UserError, match=f"{other}: it has other layers, another component or another rule"):
        summarise(folder)


def test_refuses_exact_effects_of_other_cells(make_run: Callable, drawn: Callable, exact_of: Callable):
    examples = drawn(2)
    record = exact_of(examples[0], 0)
    for effects in ({"mlp": record.effects["mlp"][:, :-1].copy()}, {"attention": record.effects["mlp"]}):
        name = next(iter(effects))
        folder = make_run(examples, [msgspec.structs.replace(record, effects=effects)], name=name)
        with pytest.raises(
            UserError,
            match=f"{folder.exact}/00000000-0.json: effects: they are of other cells than the scores; move it",
        ):
            summarise(folder)


def test_the_strongest_effects_have_intervals_that_exclude_0():
    profile = {
        "layers": [4, 5, 6],
        "roles": ["position 0", "last"],
        "facts": [9, 9],
        "sampled": [9, 8],
        "mean_score": [[1.0, 7.0]] * 3,
        "mean_effect": [[2.0, 1.0], [3.0, -4.0], [None, 6.0]],
        "interval_low": [[1.0, 0.5], [-1.0, -5.0], [None, -0.5]],
        "interval_high": [[3.0, 1.5], [7.0, -3.0], [None, 12.5]],
        "mean_magnitude": [[2.0, 1.0], [3.0, 4.0], [None, 6.0]],
        "magnitude_low": [[1.0, 0.5], [2.0, 3.0], [None, 0.0]],
        "magnitude_high": [[3.0, 1.5], [4.0, 5.0], [None, 12.0]],
    }
    assert strongest_cells(profile) == {"last": [(-4.0, 5, "last"), (1.0, 4, "last")]}
    assert strongest_at(profile, "position 0") == [(2.0, 4, "position 0")]
    assert strongest_at(profile, "last", 1, "mean_magnitude") == [(4.0, 5, "last")]
    assert strongest_at(profile, "last", 1, "mean_score") == [(7.0, 4, "last")]
    assert mean_text(profile, (-4.0, 5, "last"), "mean_effect") == "-4.000 (-5.000 to -3.000)"
    assert (has_effects(profile), all_exact(profile)) == (True, False)
    assert all_exact({**profile, "sampled": [9, 9]})
    # Counts of a run that goes on have mean scores alone.
    assert not has_effects({"layers": [4], "mean_score": [[1.0, 7.0]]})


def test_the_strongest_cells_of_a_role_are_its_largest_means(make_run: Callable, example: Example):
    scores_LT = np.zeros_like(example.scores["mlp"].sum)
    scores_LT[:, -1] = [1.0, -3.0, 2.0]
    scores_LT[:, 0] = [-8.0, 1.0, 9.0]
    folder = make_run([msgspec.structs.replace(example, scores={"mlp": ComponentScores(scores_LT)})])
    found = summarise(folder).summary["profile"]
    cells = strongest_cells(found, 2)
    assert cells["last"] == [(-3.0, 1, "last"), (2.0, 2, "last")]
    # Position 0 has larger ones, but is apart.
    assert "position 0" not in cells
    assert strongest_at(found, "position 0", 2) == [(9.0, 2, "position 0"), (-8.0, 0, "position 0")]
    assert "further" in cells or "further" not in example.roles
