"""The closing lines of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from agreements import part, report

from lit_attr.evaluation.closing import closing_lines
from lit_attr.evaluation.profile import ProfileSums
from lit_attr.evaluation.summary import summarise
from lit_attr.facts.rows import Rejected
from lit_attr.records.folder import RunFolder


def finished(folder: Path, model: dict[str, str], rejected: int = 0, **summary: object) -> Path:
    run = RunFolder(folder)
    run.open({"model": model, "data": {}}, [Rejected(row, row, "no subject") for row in range(rejected)])
    run.write_summary({**summarise(run).summary, **summary})
    return folder


def test_no_contrasts_are_described_as_none(tmp_path: Path):
    folder = finished(tmp_path, {}, rejected=3)
    lines = closing_lines(folder, pictures=False, resumed=0)
    assert "contrasts: 0 (0 from an earlier run), rows refused: 3" in lines
    assert "contrast accuracy (true answer above the false one): no contrasts" in lines
    assert "tensorboard" not in lines and "heatmaps" not in lines
    assert "contrasts: 0, rows refused: 3" in closing_lines(folder, pictures=False)


@pytest.mark.parametrize(("gradient", "lines"), [({}, 0), ({"gradient": "through dequantised weights"}, 1)])
def test_says_when_the_gradient_is_approximate(tmp_path: Path, gradient: dict[str, str], lines: int):
    text = closing_lines(finished(tmp_path, gradient), pictures=False)
    assert text.count("scores are approximate: the gradient is taken through dequantised weights") == lines


def test_exact_effects_take_no_gradient(tmp_path: Path):
    model = {"gradient": "through dequantised weights", "rule": "exact"}
    assert "approximate" not in closing_lines(finished(tmp_path, model), pictures=False)


def test_says_how_far_scores_agree(tmp_path: Path):
    agreement = report(0.75, {"0": part(0.25, 0.125, 0.375)})
    lines = closing_lines(finished(tmp_path, {}, agreement=agreement), pictures=False).splitlines()
    assert (
        "agreement: 4 contrasts compared with their exact effects (zero ablation): r = 0.75 (95% interval 0.65 to "
        "0.85) over all layers and tokens, 0.50 (95% interval 0.38 to 0.62) without position 0; do not rely on "
        "the scores of layer 0 (r = 0.25)"
    ) in lines


def test_names_position_0_apart_from_the_strongest_scores(tmp_path: Path):
    profile = ProfileSums([3, 9], "mlp", "gradient")
    # Position 0, a subject of one token, the last token.
    profile.add(np.array([[0.25, -2.0, 0.5], [-4.0, 1.0, 3.0]]), ("prefix", "last subject", "last"), (1, 2))
    lines = closing_lines(finished(tmp_path, {}, profile=profile.compute()), pictures=False).splitlines()
    assert (
        "strongest mean scores (estimates), in logits: layer 9 at last +3.000; layer 3 at first subject -2.000; "
        "layer 3 at last subject -2.000; at position 0 (often an attention sink): layer 9 -4.000"
    ) in lines


def of_effects(**changes: object) -> dict[str, object]:
    """A profile of two layers at position 0 and the last token, with exact effects of 8 of 20 facts."""
    return {
        "rule": "gradient",
        "component": "mlp",
        "layers": [3, 9],
        "roles": ["position 0", "prefix", "last"],
        "facts": [20, 5, 20],
        "sampled": [8, 2, 8],
        "mean_score": [[9.0, 9.0, 9.0], [9.0, 9.0, 9.0]],
        "mean_effect": [[0.25, None, -3.0], [-4.0, None, 5.0]],
        "interval_low": [[0.125, None, -3.5], [-5.0, None, -1.0]],
        "interval_high": [[0.375, None, -2.5], [1.0, None, 11.0]],
        "mean_magnitude": [[0.5, None, 3.5], [4.5, None, 6.0]],
        "magnitude_low": [[0.25, None, 3.0], [4.0, None, 5.5]],
        "magnitude_high": [[0.75, None, 4.0], [5.0, None, 6.5]],
        **changes,
    }


def test_names_the_strongest_mean_effects_whose_intervals_exclude_0(tmp_path: Path):
    lines = closing_lines(finished(tmp_path, {}, profile=of_effects()), pictures=False).splitlines()
    assert (
        "strongest mean effects, in logits, 95% interval: layer 3 at last -3.000 (-3.500 to -2.500); "
        "at position 0 (often an attention sink): layer 3 +0.250 (+0.125 to +0.375)"
    ) in lines
    assert (
        "largest mean magnitudes of effects, in logits, 95% interval: layer 9 at last 6.000 (5.500 to 6.500); "
        "layer 3 at last 3.500 (3.000 to 4.000); at position 0 (often an attention sink): layer 9 4.500 "
        "(4.000 to 5.000)"
    ) in lines
    assert not any("scores" in line for line in lines)


def test_no_effect_stands_out(tmp_path: Path):
    wide = of_effects(interval_low=[[-1, None, -4]] * 2, interval_high=[[1, None, 6]] * 2)
    lines = closing_lines(finished(tmp_path, {}, profile=wide), pictures=False).splitlines()
    assert "strongest mean effects, in logits, 95% interval: none whose interval excludes 0" in lines


def test_exact_effects_of_all_facts_have_no_interval(tmp_path: Path):
    means = [[0.25, 1.0, -3.0], [-4.0, 0.5, 5.0]]
    profile = of_effects(sampled=[20, 5, 20], mean_effect=means, interval_low=means, interval_high=means)
    lines = closing_lines(finished(tmp_path, {}, profile=profile), pictures=False).splitlines()
    assert (
        "strongest mean effects, in logits, exact effects of all facts: layer 9 at last +5.000; "
        "layer 3 at last -3.000; layer 3 at prefix +1.000; at position 0 (often an attention sink): layer 9 -4.000"
    ) in lines


def test_says_where_heatmaps_are(tmp_path: Path):
    folder = finished(tmp_path, {})
    assert f"--logdir {folder}" in closing_lines(folder, pictures=True).splitlines()[-1]
    (folder / "figures").mkdir()
    assert f"heatmaps: {folder / 'figures'}" in closing_lines(folder, pictures=False)


def test_a_run_without_a_summary_has_records(tmp_path: Path):
    assert closing_lines(tmp_path, pictures=True) == f"records: {tmp_path / 'batches'}"
