"""Rows drawn at random, for the scripts that compare runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import measured_runs
import pytest

ROW = {"prompt": "The capital of {} is", "subject": "", "target_true": " A", "target_false": " B"}


def write_rows(path: Path, count: int) -> str:
    """Rows of which every third lacks a subject."""
    names = [f"Land{place}" for place in range(count)]
    rows = [
        {**ROW, "prompt": f"The capital of {name} is", "subject": "" if place % 3 == 0 else name}
        for place, name in enumerate(names)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_draws_facts_without_replacement_by_the_seed(tmp_path: Path):
    source = write_rows(tmp_path / "rows.jsonl", 30)
    drawn = [row["subject"] for row in measured_runs.draw_rows(source, 8, 5).rows]
    assert drawn == [f"Land{place}" for place in random.Random(5).sample([p for p in range(30) if p % 3], 8)]
    assert [row["subject"] for row in measured_runs.draw_rows(source, 8, 6).rows] != drawn


def test_draws_all_facts_where_there_are_no_more(tmp_path: Path):
    source = write_rows(tmp_path / "rows.jsonl", 9)
    assert {row["subject"] for row in measured_runs.draw_rows(source, 100, 0).rows} == {
        f"Land{p}" for p in (1, 2, 4, 5, 7, 8)
    }


def test_a_later_call_continues_kept_runs(tmp_path: Path):
    with measured_runs.folder_of_runs(None, "model") as folder:
        assert folder.is_dir()
    assert not folder.exists()
    with measured_runs.folder_of_runs(str(tmp_path), "some/model") as folder:
        assert folder == tmp_path / "some" / "model"


@pytest.mark.parametrize(("label", "name"), [("4-bit (NF4)", "4-bit-NF4"), ("bfloat16", "bfloat16")])
def test_labels_are_names_of_folders(label: str, name: str):
    assert measured_runs.file_name(label) == name
