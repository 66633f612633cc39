"""Every command and program of README.md and docs/ runs, and every link leads somewhere.

Commands run in an empty folder that holds what their placeholders name: a model, facts, and the output of a run.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from project import REPOSITORY

from lit_attr.cli import main
from lit_attr.models.loading import DEMO_MODEL

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXTS = {path.relative_to(REPOSITORY).as_posix(): path.read_text("utf-8") for path in PAGES}
# These need a hub, a device or hours: what can be said here is whether their settings are accepted.
NEEDS_A_HUB = ("openai-community/", "configs/gpt2", "configs/llama", "configs/gemma", "configs/smollm2")
SCORE = "lit-attr predict"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """The commands of a page: lines of its blocks, and what stands in backticks with arguments."""
    lines = [line.split("  #")[0].strip() for block in blocks(page, "bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose)]
    return [line for line in (*lines, *inline) if " " in line]


ALL = [(page, command) for page in TEXTS for command in dict.fromkeys(commands(page))]
PREDICT, RECORDS, PROGRAMS = (
    [(page, command) for page, command in ALL if re.match(pattern, command)]
    for pattern in (
        rf"{SCORE} -(?!-help)|scripts/\w+\.sh -",
        r"lit-attr (?!predict)\w+ \S",
        r"python scripts/\w+\.py \S",
    )
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outputs of two runs, with neurons."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit-attr"])
        for name in ("lit_attr_output", "OUT2"):
            words = ["--data.limit", "24", "--model.verify", "4", "--model.top_neurons", "3"]
            output = ["--writer.output_dir", str(folder / name), "--trainer.logger", "false"]
            main(["predict", "--trainer.accelerator", "cpu", *words, *output])
    for name in ("OUT", "OUT1", "CPU_OUT", "FLOAT32", "known"):
        shutil.copytree(folder / "lit_attr_output", folder / name)
    for name in ("GPU_OUT", "FORMAT", "resample"):
        shutil.copytree(folder / "OUT2", folder / name)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the model, the facts and the configurations that commands name."""
    shutil.copytree(DEMO_MODEL, tmp_path / "my_model")
    sample = Path(DEMO_MODEL).parent / "sample_facts.jsonl"
    pd.read_json(sample, lines=True, nrows=24).to_csv(tmp_path / "facts.csv", index=False)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def in_place(words: list[str]) -> list[str]:
    """The words of a command with a model and facts that are there."""
    names = {"MODEL": "my_model", "MODEL.gguf": "my_model", "BASE": "my_model", "FACTS": "facts.csv"}
    names |= {f"{name}.gguf": "my_model" for name in ("smollm2", "gemma")}
    return [re.sub(r"[\w.]+", lambda found: names.get(found[0], found[0]), word) for word in words]


@pytest.mark.parametrize(("page", "command"), PREDICT)
def test_every_run_runs(page: str, command: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    program, *words = shlex.split(command)
    if program == "lit-attr":
        words = words[1:]
    else:
        assert (REPOSITORY / program).exists()
    words = in_place(words)
    if any(name in command for name in NEEDS_A_HUB) or "--ckpt_path" in words:
        with pytest.raises(SystemExit) as stopped:
            main(["predict", *words, "--print_config"])
        assert stopped.value.code == 0
        return
    defaults = {"--data.limit": "24", "--model.verify": "2", "--model.pilot": "4", "--trainer.logger": "false"}
    if "--model.min_agreement" not in words:
        del defaults["--model.pilot"]
    added = [word for name, value in defaults.items() if name not in words for word in (name, value)]
    main(["predict", *words, *added, "--trainer.accelerator", "cpu"])
    assert "agreement" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "command"), RECORDS)
def test_every_command_on_records_runs(
    page: str, command: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(finished)
    for written in ("neurons.csv", "attributions.parquet"):
        (finished / "lit_attr_output" / written).unlink(missing_ok=True)
    main(shlex.split(command)[1:])
    assert capsys.readouterr().out


@pytest.mark.parametrize(("page", "command"), PROGRAMS)
def test_every_script_accepts_its_arguments(page: str, command: str, monkeypatch: pytest.MonkeyPatch):
    _, script, *words = shlex.split(command)
    source = (REPOSITORY / script).read_text("utf-8")
    monkeypatch.setattr(sys, "argv", [script, *words])
    if "auto_cli" in source:
        sys.argv.append("--print_config")
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        assert stopped.value.code == 0
    else:
        options = {word for word in words if word.startswith("--")}
        assert all(option in source for option in options)


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "python")])
def test_the_python_runs_in_reading_order(page: str, elsewhere: Path, finished: Path):
    shutil.copytree(finished / "lit_attr_output", elsewhere / "lit_attr_output")
    shutil.copytree(finished / "OUT", elsewhere / "OUT")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks(page, "python"):
            exec(block, {})


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    text = re.sub(r"[`*]", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str):
    for link in re.findall(r"(?:\]\(|<img src=\")((?!https?:)[^)\"]+)[)\"]", TEXTS[page]):
        name, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], link


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(TEXTS["README.md"].split()) <= 1300
    linked = {link for text in TEXTS.values() for link in re.findall(r"\]\((?:docs/)?(\w+\.md)", text)}
    assert {path.name for path in PAGES} - {"README.md"} <= linked
