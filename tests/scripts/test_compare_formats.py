"""The table of number formats in the demo model's card is the one that the script prints."""

from __future__ import annotations

from pathlib import Path

import compare_formats
import pytest
from measured_runs import draw_rows
from project import REPOSITORY
from torch import no_grad

from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer

CARD = REPOSITORY / "lit_attr" / "assets" / "demo_model" / "README.md"


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of tables by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: cells for first, *cells in rows}


def number(cell: str) -> float:
    return float(cell.split()[0])


def test_the_card_shows_what_the_script_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    chosen = ("bfloat16", "4-bit (NF4)")
    monkeypatch.setattr(compare_formats, "FORMATS", {name: compare_formats.FORMATS[name] for name in chosen})
    compare_formats.compare()
    printed, card = capsys.readouterr().out, CARD.read_text()
    command = "`python scripts/compare_formats.py --rows 200 --seed 0`"
    assert command in printed and command in card
    for name in chosen:
        found, shown = rows_of(printed)[name], rows_of(card)[name]
        # Kernels differ between processors.
        for at in range(3):
            assert number(found[at]) == pytest.approx(number(shown[at]), abs=0.01)
        assert found[3:] == shown[3:]


@pytest.mark.parametrize(("first", "refused"), [(0, "all"), (5, "20")])
def test_formats_that_overflow_are_named(
    first: int,
    refused: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The largest number of float16 is 65,504. From a position on, the sum of two exceeds it: at the first, at
    which the test on loading looks, or beyond them.
    """
    model, tokenizer = load_model(DEMO_MODEL), load_tokenizer(DEMO_MODEL)
    with no_grad():
        model.transformer.wpe.weight[first:, 0] = 6e4
        model.transformer.h[0].mlp.c_proj.bias[0] = 6e4
    model.save_pretrained(tmp_path / "large")
    tokenizer.save_pretrained(tmp_path / "large")
    monkeypatch.setattr(compare_formats, "FORMATS", {"float16": {"dtype": "float16"}})
    compare_formats.compare(models=[str(tmp_path / "large")], rows=20, output_dir=str(tmp_path / "runs"))
    assert all(len(tokenizer(row["prompt"])["input_ids"]) > first for row in draw_rows("sample", 20, 0).rows)
    assert rows_of(capsys.readouterr().out)["float16"] == ["-", "-", "-", "-", "-", refused]
