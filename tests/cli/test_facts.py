"""`lit-attr facts`: the list of a run's facts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from make_large_run import make_run
from tabs import FIRST, SECOND, add_batch, add_exact, new_run
from tiny_runs import example

from lit_attr.cli import main

ESCAPE = "\x1b[31m\x9b1m\a"


def listed(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    main(["facts", str(run), "--json", *words])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def ids(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[int | str]:
    return [row["id"] for row in listed(run, capsys, *words)]


def refused(capsys: pytest.CaptureFixture[str], *words: str, status: int = 1) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["facts", *words])
    assert ended.value.code == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("lit-attr facts: error: ") and len(error) < 300
    return error


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], [1, 3, 10, "text"]),
        (["--reverse"], ["text", 10, 3, 1]),
        (["--search", "SPAIN europe"], [3]),
        (["--search", "nowhere"], []),
        (["--relation", "P36"], [1, 10]),
        (["--known"], [3, "text"]),
        (["--known", "false"], [1, 10]),
        (["--preferred"], [3, 10, "text"]),
        (["--preferred=false"], [1]),
        (["--checked"], [3]),
        (["--checked", "false"], [1, 10, "text"]),
        (["--sort", "logit_diff"], ["text", 3, 10, 1]),
        (["--sort", "logit_diff", "--reverse"], [1, 10, 3, "text"]),
        (["--sort", "prob_true"], ["text", 3, 10, 1]),
        (["--sort", "rank_true"], [3, "text", 10, 1]),
        # 8, −6, 5 and 2.
        (["--sort", "largest"], [3, 1, 10, "text"]),
        (["--sort", "error"], [3, 1, 10, "text"]),
        (["--sort", "largest", "--limit", "2"], [3, 1]),
        (["--known", "--relation", "P17", "--sort", "logit_diff"], ["text", 3]),
    ],
)
def test_facts_are_chosen_and_sorted(
    words: list[str], found: list[Any], run: Path, capsys: pytest.CaptureFixture[str]
):
    assert ids(run, capsys, *words) == found


@pytest.mark.parametrize("words", [["--known", "RUN"], ["--known", "--json", "RUN"], ["--known", "true", "RUN"]])
def test_a_flag_alone_may_stand_before_the_run(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]):
    main(["facts", *(word.replace("RUN", str(run)) for word in words), "--json"])
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [3, "text"]


def test_a_line_of_json_has_what_the_list_has(run: Path, capsys: pytest.CaptureFixture[str]):
    row = listed(run, capsys, "--search", "spain")[0]
    assert row.pop("error") == pytest.approx(3 / sqrt(55))
    assert row == {
        "id": 3,
        "step": 0,
        "prompt": "Spain is in",
        "subject": "A B",
        "target_true": " Europe",
        "target_false": " Y",
        "relation": "P17",
        "logit_diff": 1.5,
        "prob_true": 0.4,
        "rank_true": 0,
        "largest": {"score": 8.0, "layer": 1, "token": 3},
        "is_checked": True,
    }


def test_the_list_in_a_pipe_has_whole_lines(run: Path, capsys: pytest.CaptureFixture[str]):
    add_batch(run, example(20, FIRST, prompt=f"The {'very ' * 60}long one is in", logit_diff=1))
    main(["facts", str(run)])
    printed = capsys.readouterr()
    head, *lines = printed.out.splitlines()
    assert head.split() == ["id", "diff", "rank", "largest", "error", "relation", "prompt", "true", "false"]
    assert [line.split()[0] for line in lines] == ["1", "3", "10", "20", "text"]
    assert lines[1].split() == [
        "3",
        "+1.50",
        "0",
        "+8.00",
        "L1",
        "t3",
        "0.40",
        "P17",
        "Spain",
        "is",
        "in",
        "Europe",
        "Y",
    ]
    assert f"The {'very ' * 60}long one is in" in lines[3]
    assert printed.err == "5 facts; the run is not finished: 5 of 9 contrasts so far\n"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lines_fit_the_terminal(
    width: int, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    prompt = f"日本語の{'とても' * 30}長い文"
    add_batch(run, example(20, FIRST, prompt=prompt, target_true=" Москва", target_false=" ירושלים"))
    monkeypatch.setenv("COLUMNS", str(width))
    main(["facts", str(run)])
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    # A wide character takes two columns; the marks around right-to-left text take none.
    for line in lines:
        wide = sum(2 if "\u2e80" < char < "\ufffd" else 0 if char == "\u200e" else 1 for char in line)
        assert wide <= width, line
    if width >= 80:
        assert len(lines) == 6 and "…" in printed and "日本語" in printed
        assert "\u200eירושלים\u200e" in printed


def test_a_column_of_the_step_where_facts_have_several(run: Path, capsys: pytest.CaptureFixture[str]):
    add_batch(run, example(1, FIRST, step=1))
    main(["facts", str(run), "--limit", "2"])
    printed = capsys.readouterr()
    assert [line.split()[:2] for line in printed.out.splitlines()] == [["id", "step"], ["1", "0"], ["1", "1"]]
    assert printed.err.startswith("5 facts, the first 2 are listed; --limit 0 lists all; the run is not finished")


def test_text_that_a_terminal_obeys_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = new_run(tmp_path / "run")
    texts = dict.fromkeys(("prompt", "target_true", "target_false", "relation_id"), f"{ESCAPE}\u202e\n")
    add_batch(run, example(f"id{ESCAPE}", FIRST, **texts), example(1, SECOND))
    for words in ([], ["--json"]):
        main(["facts", str(run), *words])
        printed = capsys.readouterr().out
        assert len(printed.splitlines()) == 3 - len(words)
        assert "\x1b" not in printed and "\x9b" not in printed and "\u202e" not in printed


def test_a_damaged_batch_is_left_out_with_a_line(run: Path, capsys: pytest.CaptureFixture[str]):
    path = run / "batches" / "00000010-0.json"
    path.write_bytes(path.read_bytes()[:-20])
    main(["facts", str(run), "--json"])
    printed = capsys.readouterr()
    assert [json.loads(line)["id"] for line in printed.out.splitlines()] == [1, 3]
    assert printed.err.count("\n") == 1 and printed.err.startswith("lit-attr: warning: left out: ")
    assert path.name in printed.err


def test_an_empty_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = new_run(tmp_path / "run", contrasts=9)
    main(["facts", str(run)])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "the run is not finished: 0 of 9 contrasts so far\n"
    (run / "summary.json").write_text("{}")
    main(["facts", str(run)])
    assert capsys.readouterr().err == "the run has no facts\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "there is no folder none; check the path"),
        (["RUN", "--relation", "P99"], "--relation: no fact has 'P99'; there are P17, P36"),
        (["RUN", "--component", "attention"], "--component: the run has scores of mlp"),
        (["RUN", "--limit", "-1"], "--limit: -1 is less than 0"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in refused(capsys, *(word.replace("RUN", str(run)) for word in words))


def test_what_the_system_refuses_is_named_with_a_fix(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="1"):
        main(["facts", "x" * 256])
    expected = f"{'x' * 256}: File name too long; fix this or give another folder"
    assert capsys.readouterr().err == f"lit-attr facts: error: {expected}\n"


def test_sorting_by_the_error_needs_exact_effects(run: Path, capsys: pytest.CaptureFixture[str]):
    for path in (run / "exact").iterdir():
        path.unlink()
    assert "--sort: no fact has exact effects; sort by another" in refused(capsys, str(run), "--sort", "error")


@pytest.mark.parametrize("words", [["--sort", "size"], ["--known", "maybe"], ["--limit", "few"], ["--serch", "x"]])
def test_a_wrong_word_is_reported_in_one_line(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["facts", str(run), *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("lit-attr")


def test_a_search_for_a_number_is_one_for_its_text(run: Path, capsys: pytest.CaptureFixture[str]):
    add_batch(run, example(20, FIRST, prompt="In 1999 it is in"))
    assert ids(run, capsys, "--search", "1999") == [20]


def test_several_components(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = new_run(tmp_path / "run")
    add_batch(run, *(example(1, FIRST, scores={"attention": {"sum": SECOND}, "mlp": {"sum": FIRST}}),))
    add_exact(run, 1, FIRST, effects={"attention": SECOND, "mlp": FIRST})
    rows = [listed(run, capsys, "--component", name)[0] for name in ("attention", "mlp")]
    assert [row["largest"]["score"] for row in rows] == [-6, 8]


def test_a_closed_pipe_is_no_error(tmp_path: Path):
    make_run(tmp_path / "run", 3_000, 1)
    words = [sys.executable, "-m", "lit_attr", "facts", str(tmp_path / "run"), "--limit", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read().decode()
        # As Rich and Python's manual have it.
        assert process.wait(120) == 1, error
    assert error == ""


def test_an_ascii_terminal(run: Path):
    add_batch(run, example(20, FIRST, prompt="日本 is in"))
    done = subprocess.run(
        [sys.executable, "-m", "lit_attr", "facts", str(run)],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\\u65e5\\u672c is in" in done.stdout.decode("ascii")
