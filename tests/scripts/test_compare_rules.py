"""The table of rules in the README is the one that the script prints."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from project import REPOSITORY


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_rules", REPOSITORY / "scripts" / "compare_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_what_the_script_prints(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """For two of the rules; the others take longer."""
    chosen = tuple(each for each in script.RULES if each.label in ("gradient", "norm-secant"))
    monkeypatch.setattr(script, "RULES", chosen)
    script.compare()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["gradient", "norm-secant"]
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    for row in rows:
        assert row in readme
