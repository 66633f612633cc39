"""How far a run is, where there is no terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lit_attr.callbacks import bars
from lit_attr.callbacks.bars import Lines


def test_a_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = 1000.0
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: now))
    lines = Lines("fact")
    lines.start("scores", 500)
    printed = []
    for seconds in (30, 40, 30, 40, 59):
        now += seconds
        lines.advance(100)
        printed.append(capsys.readouterr().err)
    # After 70 and 140 seconds; 100 and 199 are within a minute of these.
    second, fourth = (f"scores: {count}/500 facts, 2.86 facts/s\n" for count in (200, 400))
    assert printed == ["", second, "", fourth, ""]
