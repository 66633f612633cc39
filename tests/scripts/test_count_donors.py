"""`scripts/count_donors.py`: how many facts have a donor."""

from __future__ import annotations

import json
from pathlib import Path

import count_donors
import pytest
from toys import word_tokenizer


def test_counts_donors_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    facts = [
        ("Spain", "Madrid", "Rome"),
        ("Rica", "Rome", "Madrid"),
        ("Costa", "Rome", "Madrid"),
        ("Orleans", "Paris", "York"),
        ("Costa Rica", "Rome", "York"),
        ("New York City", "Rome", "York"),
    ]
    rows = [
        {"relation": "The capital of {} is", "subject": subject, "target_true": true, "target_false": false}
        for subject, true, false in facts
    ]
    (tmp_path / "facts.json").write_text(json.dumps(rows))
    word_tokenizer().save_pretrained(tmp_path / "words")
    count_donors.count(str(tmp_path / "facts.json"), [str(tmp_path / "words")])
    _, _, line, _, title, _, *reasons = capsys.readouterr().out.splitlines()
    cells = line.strip("| ").split(" | ")
    assert cells[:4] == [str(tmp_path / "words"), "6", "4", "3"]
    # Spain for two others, and one of them or two for Spain and Orleans.
    assert 2 <= int(cells[4]) <= 3 and float(cells[5]) >= 0
    assert title == f"{tmp_path / 'words'}:"
    counts = "n, n and n tokens before, in and after the subject"
    assert reasons == [f"- 2: no donor: no other row with its relation and template has {counts}"]
