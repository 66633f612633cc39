"""The program's help, and the commands `lit-attr export`, `lit-attr plot` and `lit-attr compare`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lit_attr.cli import main

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for name in ("predict", "facts", "show", "plot", "export", "compare"):
        assert re.search(rf"^ +{name} +[A-Z]", printed, flags=re.MULTILINE), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit-attr"])
        words = "predict --data.limit 12 --model.verify 0 --trainer.accelerator cpu --trainer.logger false"
        main([*words.split(), "--trainer.enable_progress_bar", "false", "--writer.output_dir", str(folder)])
    return folder


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["--to", "parquet"], ["attributions.parquet"]),
        (["--to", "csv", "--output", "table.csv"], ["table.csv"]),
        (["--to", "inseq", "--per", "layer", "--output", "inseq"], ["inseq"]),
    ],
)
def test_export_writes_and_prints_the_path(
    finished: Path, tmp_path: Path, words: list[str], written: list[str], capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(finished, tmp_path / "run")
    main(["export", str(tmp_path / "run"), *words])
    (printed,) = capsys.readouterr().out.splitlines()
    assert Path(printed).name == written[0] and Path(printed).exists()
    # What is written is never overwritten.
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path / "run"), *words])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"lit-attr export: error: --output: {printed} exists; ") and error.count("\n") == 1


def test_plot_draws_and_prints_the_paths(finished: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    main(["plot", str(finished), str(finished), "--figures", "figures", "--format", "svg", "--facts", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert {Path(line).suffix for line in printed} == {".svg"}
    assert sorted(map(Path, printed)) == sorted(Path("figures").rglob("*.svg"))
    assert any("comparison" in line for line in printed)


def test_compare_prints_a_table(finished: Path, capsys: pytest.CaptureFixture[str]):
    main(["compare", str(finished), str(finished)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 contrasts compared, scores of mlp"
    assert "| all | 1.0000 | 1.000 | 0.0% |" in lines


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["export", "none", "--to", "csv"],
            1,
            "there is no folder none; check the path",
        ),
        (["export", "RUN", "--to", "csv", "--per", "layer"], 1, "--per: it is for inseq, not csv; leave it out"),
        (["export", "RUN", "--to", "html"], 2, "to: 'html' is not parquet or csv or inseq"),
        (["export", "RUN"], 2, "required: export.to"),
        (["compare", "RUN"], 1, "give the output folders of two runs, not of 1"),
        (["export"], 2, "required: export.out, export.to"),
        (["plot", "none"], 1, "there is no folder none; check the path"),
        (["plot", "RUN", "--facts", "99"], 1, "--facts: 99 is not from 0 to 24"),
        (["plot", "RUN", "--ids", "[99]"], 1, "--ids: RUN has no contrast of 99"),
        (["plot", "RUN", "--format", "gif"], 2, "format: 'gif' is not pdf or svg or png"),
        (["plot", "RUN", "--colour", "red"], 2, "--colour red"),
        (["plot"], 2, "required: plot.out"),
    ],
)
def test_a_mistake_of_a_command_on_records_is_reported_in_one_line(
    finished: Path, words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        main([word.replace("RUN", str(finished)) for word in words])
    error = capsys.readouterr().err
    assert stopped.value.code == status
    assert re.match(rf"lit-attr( {words[0]})?: error: ", error) and error.count("\n") == 1
    assert message.replace("RUN", str(finished)) in error
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "program",
    [
        "import lit_attr; lit_attr.load_attributions",
        "import lit_attr; assert len([*lit_attr.load_attributions(RUN)]) == 12",
        "from lit_attr.cli import main; main(['export', RUN, '--to', 'parquet', '--output', 'a.parquet'])",
        "from lit_attr.cli import main; main(['export', RUN, '--to', 'csv', '--output', 'a.csv'])",
        "from lit_attr.cli import main; main(['plot', RUN, '--figures', 'figures', '--facts', '1'])",
        "from lit_attr.cli import main; main(['facts', RUN])",
        "from lit_attr.cli import main; main(['show', RUN, '3'])",
        "from lit_attr.cli import main; main(['--version'])",
    ],
)
def test_reading_records_imports_no_torch(finished: Path, program: str):
    check = "import sys; assert not {'torch', 'lightning', 'transformers', 'datasets'} & {*sys.modules}"
    done = subprocess.run(
        [sys.executable, "-c", f"{program.replace('RUN', repr(str(finished)))}; {check}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_commands_on_records_exit_as_processes(finished: Path, elsewhere: Path):
    words = [sys.executable, "-m", "lit_attr", "export", str(finished), "--to", "csv", "--output", "a.csv"]
    for status in (0, 1):
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status
    assert done.stderr.count("\n") == 1
