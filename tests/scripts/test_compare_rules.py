"""The table of rules in the demo model's card is the one that the script prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import compare_rules
import numpy as np
import pytest
from measured_runs import draw_rows
from project import REPOSITORY, writing_trainer

from lit_attr import AttributionModule, load_attributions

CARD = REPOSITORY / "lit_attr" / "assets" / "demo_model" / "README.md"


def choose(monkeypatch: pytest.MonkeyPatch, *labels: str) -> None:
    monkeypatch.setattr(
        compare_rules, "RULES", tuple(each for each in compare_rules.RULES if each.label in labels)
    )


def test_the_card_shows_what_the_script_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """For two of the rules; the others take longer."""
    choose(monkeypatch, "gradient", "norm-secant")
    compare_rules.compare()
    command, *lines = capsys.readouterr().out.splitlines()
    assert command == "`python scripts/compare_rules.py --rows 200 --seed 0`"
    rows = [line for line in lines if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["gradient", "norm-secant"]
    card = CARD.read_text().splitlines()
    assert command in card
    for row in rows:
        assert row in card


def cells_of(line: str) -> list[float]:
    """The numbers of a row behind its first two cells; the worst layer's number follows its correlation."""
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", "|".join(line.split("|")[3:]))]


def test_a_row_has_the_agreement_with_exact_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Against the exact effects beside the scores of another run, in numpy."""
    choose(monkeypatch, "gradient", "integrated, integration_steps 8")
    compare_rules.compare(rows=12, integrated_rows=4, seed=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "contrasts:" in line] == ["12 contrasts:", "4 contrasts:"]
    rows = [line for line in lines if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["gradient", "gradient", "integrated, integration_steps 8"]

    drawn = draw_rows("sample", 12, 3)
    for row, count in ((rows[0], 12), (rows[1], 4)):
        folder = tmp_path / str(count)
        data = drawn.first(count).data()
        writing_trainer(folder, max_heatmaps=0).predict(
            AttributionModule(verify=count), datamodule=data, return_predictions=False
        )
        effects = {}
        for path in folder.glob("exact/*.json"):
            record = json.loads(path.read_bytes())
            effects[record["id"]] = np.array(record["effects"]["mlp"])
        assert len(effects) == count
        scores = {each["id"]: np.array(each["scores"]["mlp"]["sum"]) for each in load_attributions(folder)}
        scores_LN, effects_LN = (np.concatenate([each[key] for key in scores], 1) for each in (scores, effects))
        later = np.concatenate([np.arange(each.shape[1]) > 0 for each in scores.values()])
        by_layer = [
            np.corrcoef(score_N, effect_N)[0, 1] for score_N, effect_N in zip(scores_LN, effects_LN, strict=True)
        ]
        r, low, high, rest, _, _, median, worst, layer, _ = cells_of(row)
        assert low <= r <= high
        assert r == pytest.approx(np.corrcoef(scores_LN.ravel(), effects_LN.ravel())[0, 1], abs=0.006)
        assert rest == pytest.approx(
            np.corrcoef(scores_LN[:, later].ravel(), effects_LN[:, later].ravel())[0, 1], abs=0.006
        )
        assert median == pytest.approx(np.median(by_layer), abs=0.006)
        assert (worst, layer) == (pytest.approx(min(by_layer), abs=0.006), int(np.argmin(by_layer)))
