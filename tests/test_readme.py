"""Every command and program of the README runs."""

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


def commands(*names: str) -> list[str]:
    """The commands of `lit-attr` with these names."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith(tuple(f"lit-attr {name} " for name in names))]


def test_the_python_runs_in_reading_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


@pytest.mark.parametrize("command", commands("predict"))
def test_every_command_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stopped:
        main([*shlex.split(command, comments=True)[1:], "--print_config"])
    assert stopped.value.code == 0


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the output of a run in it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lit-attr"])
        main(["predict", "--trainer.accelerator", "cpu", "--data.limit", "40", "--trainer.logger", "false"])
    return folder


@pytest.mark.parametrize("command", commands("plot", "export"))
def test_every_command_on_records_runs(
    command: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(run_folder)
    main(shlex.split(command, comments=True)[1:])
    printed = capsys.readouterr().out.splitlines()
    assert printed and all(Path(path).exists() for path in printed)


def test_every_file_it_names_exists():
    linked = re.findall(r"\]\(((?!https?:)[^)]+)\)", README)
    scripts = re.findall(r"^(scripts/\S+)", README, flags=re.MULTILINE)
    assert len(scripts) == 2
    for name in (*linked, *scripts):
        assert (REPOSITORY / name).exists(), name
