"""What the README tells a reader to run."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from project import REPOSITORY

from lit_attr.cli import main

README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith("lit-attr predict")]


def test_the_python_runs_in_the_order_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    project, notebook, core, reading = blocks("python")
    exec(project, {})
    assert len(list((tmp_path / "out" / "batches").iterdir())) > 1
    shown: dict = {}
    exec(notebook, shown)
    assert [record["rule"] for record in shown["records"]] == ["norm-secant"]
    assert "<img" in shown["records"]._repr_html_()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(core, {})
    assert printed.getvalue().startswith("tensor([[[")
    main(["predict", "--trainer.accelerator", "cpu", "--data.limit", "40", "--trainer.logger", "false"])
    names: dict = {}
    exec(reading, names)
    assert len(names["examples"]) == 40


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stopped:
        main([*shlex.split(command)[1:], "--print_config"])
    assert stopped.value.code == 0


def test_every_file_it_names_is_there():
    linked = re.findall(r"\]\(((?!https?:)[^)]+)\)", README)
    scripts = re.findall(r"^(scripts/\S+)", README, flags=re.MULTILINE)
    assert len(scripts) == 2
    for name in (*linked, *scripts):
        assert (REPOSITORY / name).exists(), name
