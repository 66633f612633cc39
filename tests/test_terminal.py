"""What is printed: on ASCII terminals, of odd paths and settings, and of names that a terminal would obey."""

from __future__ import annotations

import csv
import json
import logging
import re
from pathlib import Path

import pytest
from runs import launch, predict
from tiny_runs import ONE, example, write_run

from lit_attr.cli import main
from lit_attr.errors import UserError, warn_once
from lit_attr.records.exports.export import export
from lit_attr.records.reading import load_attributions
from lit_attr.text import MAX_LINE_CHARACTERS
from lit_attr.views.paper.figures import write_figures

ASCII = [
    {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
]
ESCAPE = "\x1b[31m\x9b1m\a"


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *, status: int | None = None) -> str:
    """The one line that the program prints on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == status if status is not None else ended.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-attr")]
    assert len(lines) == 1
    assert len(lines[0]) <= MAX_LINE_CHARACTERS
    assert lines[0].isprintable()
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("environment", ASCII[1:], ids=["locale"])
def test_a_finished_run_is_a_success_on_an_ascii_terminal(environment: dict[str, str], tmp_path: Path):
    rows = [{**row, "target_false": "Paris", "relation_id": "Ж"} for row in ROWS]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    # Where the locale is ASCII as well, so are paths.
    folder = tmp_path / ("日本" if "PYTHONIOENCODING" in environment else "out")
    words = predict(folder, "--data.source", str(tmp_path / "facts.jsonl"))
    with launch(["-m", "lit_attr", *words], tmp_path / "log", environment=environment) as process:
        assert process.wait(120) == 0, (tmp_path / "log").read_bytes()
    log = (tmp_path / "log").read_bytes().decode("ascii")
    assert "contrasts: 2" in log
    assert "PYTHONIOENCODING" not in environment or "/\\u65e5\\u672c/batches" in log
    assert "Traceback" not in log


ROWS = [
    {"id": 1, "prompt": "The capital of Spain is", "subject": "Spain", "target_true": "Madrid"},
    {"id": 2, "prompt": "The capital of Japan is", "subject": "Japan", "target_true": "Tokyo"},
]


@pytest.mark.parametrize("path", ["out\udcff", "out\0put", "\ud800/out"])
def test_paths_that_no_file_system_has_are_refused(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", [ONE])
    line = refused(["predict", "--writer.output_dir", path], capsys, status=1)
    assert line.startswith("lit-attr: error: writer.output_dir: ")
    assert "is not a path in UTF-8 without NUL; give another" in line
    for words in (
        *(["export", str(run), "--to", "csv", "--output", path], ["export", path, "--to", "csv"]),
        *(["plot", path], ["plot", str(run), "--figures", path]),
    ):
        # Some of them the parser refuses before.
        assert re.search("is not a path in UTF-8 without NUL|surrogates not allowed", refused(words, capsys))
    for call in (
        lambda: export(run, "csv", path),
        lambda: load_attributions(path),
        lambda: list(write_figures([Path(path)])),
    ):
        with pytest.raises(UserError, match="is not a path in UTF-8 without NUL"):
            call()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run"]


def test_a_path_with_nul_in_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "config.yaml"
    config.write_text('writer:\n  output_dir: "a\\0b"\n')
    line = refused(["predict", "--config", str(config)], capsys)
    assert "writer.output_dir: 'a\\x00b' is not a path" in line


@pytest.mark.parametrize("nested", ["[" * 3_000 + "]" * 3_000, "{a: " * 3_000 + "1" + "}" * 3_000])
def test_yaml_that_is_nested_too_deeply(nested: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "config.yaml"
    config.write_text(f"model:\n  layers: {nested}\n")
    run = write_run(tmp_path / "run", [ONE])
    for words in (
        ["predict", "--config", str(config)],
        ["predict", "--model.layers", nested],
        ["plot", str(run), "--ids", nested],
    ):
        assert refused(words, capsys).startswith("lit-attr")


@pytest.mark.parametrize(
    "words",
    [
        ["predict", f"--{ESCAPE}"],
        ["predict", "--data.source", f"{ESCAPE}.json"],
        ["predict", "--model.model_name", f"{ESCAPE}/x"],
        ["predict", "--model.layers", ESCAPE],
        ["predict", "--model.component", f"{ESCAPE}.{{layer}}"],
        ["predict", "--writer.max_heatmaps", ESCAPE],
        ["export", ESCAPE, "--to", "csv"],
        ["export", "run", "--to", ESCAPE],
        ["plot", ESCAPE],
        ["plot", "run", f"--{ESCAPE}", "1"],
        ["predict", "--model.layers", "x" * 100_000],
    ],
)
def test_escapes_are_shown_and_not_sent(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [ONE])
    output = ["--writer.output_dir", str(tmp_path / "out")] if words[0] == "predict" else []
    line = refused([*words, *output], capsys)
    assert "\\x1b[31m" in line or "xxx" in line


def test_escapes_in_rows_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {**ROWS[0], "target_false": "Paris", "id": f"a{ESCAPE}", f"column{ESCAPE}": 1}
    for number, rows in enumerate(([{**row, "subject": "Peru"}], [{f"c{ESCAPE}": 1}])):
        source = tmp_path / f"{number}.json"
        source.write_text(json.dumps(rows))
        line = refused(["predict", "--data.source", str(source), "--writer.output_dir", str(tmp_path)], capsys)
        assert "data.source" in line or "data" in line


def test_escapes_in_warnings_are_shown(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "lit_attr"):
        warn_once(f"writer.heatmap_ids: the run has no fact with the id {ESCAPE}")
    assert "\\x1b[31m" in caplog.text
    assert "\x1b" not in caplog.text


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"]


def test_csv_exports_can_escape_formulas(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tokens = [*FORMULAS[:3], " in"]
    examples = [
        example(f"{text} {place}", [[-1, 2, 3, 4]] * 2, tokens=tokens, relation_id=text, rank_true=place)
        for place, text in enumerate([*FORMULAS, "plain"])
    ]
    run = write_run(tmp_path / "run", examples)
    as_it_is, escaped = tmp_path / "a.csv", tmp_path / "b.csv"
    main(["export", str(run), "--to", "csv", "--output", str(as_it_is)])
    main(["export", str(run), "--to", "csv", "--output", str(escaped), "--escape_formulas", "true"])
    assert capsys.readouterr().out.splitlines() == [str(as_it_is), str(escaped)]
    rows, safe = (list(csv.DictReader(path.open(newline=""))) for path in (as_it_is, escaped))
    assert {row["relation_id"] for row in rows} == {*FORMULAS, "plain"}
    starts = tuple("=+-@\t\r\n＝")
    for row, safe_row in zip(rows, safe, strict=True):
        for name, value in row.items():
            is_text = name in ("id", "relation_id", "token", "role", "component", "rule")
            assert safe_row[name] == (f"'{value}" if is_text and value.startswith(starts) else value)
    # Numbers stay numbers.
    assert {row["sum"] for row in safe} == {"-1.0", "2.0", "3.0", "4.0"}
    for to in ("parquet", "inseq"):
        with pytest.raises(UserError, match=f"^escape_formulas: it is for csv, not {to}; leave it out$"):
            export(run, to, escape_formulas=True)


def test_the_help_of_csv_warns_of_formulas(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "A spreadsheet that opens a CSV file may run texts from the data that begin with `=`" in words
    assert "--escape_formulas" in words
