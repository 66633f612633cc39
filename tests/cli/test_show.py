"""`lit-attr show`: one fact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sealed import reseal
from tabs import FIRST, FOURTH, SECOND, add_batch, add_exact, new_run
from tiny_runs import example

from lit_attr.cli import main

ESCAPE = "\x1b[31m\x9b1m\a"


def shown(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["show", str(run), *words])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["show", *words])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("lit-attr show: error: ") and len(error) < 300
    return error.removeprefix("lit-attr show: error: ")


def test_a_fact_with_its_exact_effects(run: Path, capsys: pytest.CaptureFixture[str]):
    lines = [line.split() for line in shown(run, capsys, "3").splitlines()]
    assert lines[0] == ["Spain", "is", "in", "→", "Europe", "/", "Y"]
    assert lines[1] == ["id", "3", "·", "subject", "A", "B", "·", "relation", "P17"]
    assert lines[2][:3] == ["logit", "difference", "+1.500:"]
    assert lines[3][:3] == ["rank", "0,", "known"]
    start = lines.index(["scores"])
    assert lines[start + 1] == ["layer", "0", "1"]
    # Tokens downwards, layers to the right.
    assert lines[start + 2 : start + 6] == [
        ["|A", "+10.00", "+20.00"],
        ["|␣B", "+1.00", "+3.00"],
        ["␣is", "+2.00", "0.00"],
        ["␣in", "+4.00", "+8.00"],
    ]
    start = lines.index(["exact", "effects"])
    assert lines[start + 2 : start + 6] == [
        ["|A", "0.00", "0.00"],
        ["|␣B", "+1.00", "+3.00"],
        ["␣is", "+2.00", "0.00"],
        ["␣in", "+4.00", "+5.00"],
    ]
    start = lines.index(["largest", "cells,", "without", "position", "0"])
    assert lines[start + 1] == ["layer", "position", "score", "exact", "role", "token"]
    assert lines[start + 2] == ["1", "3", "+8.0000", "+5.0000", "last", "in"]
    assert lines[start + 3] == ["0", "3", "+4.0000", "+4.0000", "last", "in"]
    assert any("zero ablation" in " ".join(line) and line[-1] == "0.40" for line in lines)


def test_cells_whose_effects_are_large_are_listed(run: Path, capsys: pytest.CaptureFixture[str]):
    add_exact(run, "text", [[0, 0, 0, 0], [0, 9, 0, 0]])
    lines = shown(run, capsys, "text", "--cells", "1").splitlines()
    assert lines[-1].split() == ["1", "1", "0.0000", "+9.0000", "last", "subject", "B"]


def test_one_record_as_json(run: Path, capsys: pytest.CaptureFixture[str]):
    record = json.loads(shown(run, capsys, "3", "--json"))
    assert record["scores"]["mlp"]["sum"] == FIRST
    assert record["exact"]["effects"]["mlp"] == [[0, 1, 2, 4], [0, 3, 0, 5]]
    assert (record["layers"], record["rule"], record["tokens"]) == ([0, 1], "gradient", ["A", " B", " is", " in"])
    assert json.loads(shown(run, capsys, "1", "--json"))["exact"] is None


def test_components_neurons_donor_and_exact_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = new_run(tmp_path / "run")
    neurons = [
        {"layer": 1, "token": 2, "neuron": 77, "score": -0.25},
        {"layer": 0, "token": 3, "neuron": 5, "score": 0.5},
    ]
    is_exact = [[False, False, False, True], [False] * 4]
    more = {"donor_id": "other", "neurons": neurons, "is_exact": {"attention": is_exact, "mlp": is_exact}}
    both = {"attention": {"sum": SECOND}, "mlp": {"sum": FIRST}}
    add_batch(run, example(1, FIRST, scores=both, rank_true=1, **more))
    printed = shown(run, capsys, "1")
    lines = [line.split() for line in printed.splitlines()]
    assert "donor other" in printed and "not known: 1 token is more likely" in printed
    assert ["attention:", "scores"] in lines and ["mlp:", "scores"] in lines
    assert ["mlp", "1", "3", "+8.0000", "last", "in"] in lines
    assert ["attention", "0", "3", "-6.0000*", "last", "in"] in lines
    assert "* exact effect" in printed
    start = lines.index(["neurons", "with", "the", "largest", "scores"])
    assert lines[start + 2 : start + 4] == [
        ["0", "5", "3", "+0.5000", "in"],
        ["1", "77", "2", "-0.2500", "is"],
    ]
    alone = shown(run, capsys, "1", "--component", "mlp")
    assert "attention" not in alone and "\nscores\n" in alone
    assert "--component: the run has scores of attention, mlp" in refused(
        capsys, str(run), "1", "--component", "block"
    )


def test_the_maps_of_a_component_stand_side_by_side(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert ["scores", "exact", "effects"] in [line.split() for line in shown(run, capsys, "3").splitlines()]


def test_effects_are_not_shown_twice(run: Path, capsys: pytest.CaptureFixture[str]):
    is_exact = {"mlp": [[True] * 4, [True] * 4]}
    reseal(
        run / "batches" / "00000003-0.json",
        lambda content: content["examples"][0].update(is_exact=is_exact),
    )
    lines = shown(run, capsys, "3").splitlines()
    assert "scores" in lines and "exact effects" not in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["11"], "id: the run has no fact '11'; close to it are 1, 3, 10; the run is not finished: 4 of 9"),
        (["txet"], "id: the run has no fact 'txet'; close to it are text;"),
        (["?"], "id: the run has no fact '?'; lit-attr facts lists them;"),
        (["3", "--step", "2"], "--step: the fact has no step 2; it has 0"),
        (["3", "--cells", "-1"], "--cells: -1 is less than 0"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    assert refused(capsys, str(run), *words).startswith(message)


def test_an_empty_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = new_run(tmp_path / "run")
    assert "lit-attr facts lists them; the run is not finished: 0 contrasts" in refused(capsys, str(run), "1")


def test_a_fact_in_a_damaged_batch(run: Path, capsys: pytest.CaptureFixture[str]):
    path = run / "batches" / "00000010-0.json"
    path.write_bytes(b"{")
    with pytest.raises(SystemExit):
        main(["show", str(run), "10"])
    warning, error = capsys.readouterr().err.splitlines()
    assert path.name in warning and "the run has no fact '10'" in error


def test_effects_of_other_cells(run: Path, capsys: pytest.CaptureFixture[str]):
    reseal(run / "exact" / "00000003-0.json", lambda content: content.update(effects={"mlp": [[1.0], [2.0]]}))
    assert "the exact effects of id '3' are of other cells than its scores" in refused(capsys, str(run), "3")


def test_refused_exact_effects_say_why(run: Path, capsys: pytest.CaptureFixture[str]):
    add_exact(run, 1, [[0] * 4] * 2, refused="an effect is not finite")
    printed = shown(run, capsys, "1")
    assert "no exact effects: an effect is not finite" in printed and "\nexact effects\n" not in printed


def test_the_steps_of_a_fact(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = new_run(tmp_path / "run")
    # At the first step the answers do not differ.
    add_batch(run, example(1, FIRST, false_token_id=1), example(1, SECOND, step=1), example(1, FOURTH, step=2))
    main(["show", str(run), "1"])
    printed = capsys.readouterr()
    assert "step 1: token 2 of the answers" in printed.out
    assert printed.err == "the fact has the steps 0, 2 as well; give --step\n"
    assert "step 2: token 3 of the answers" in shown(run, capsys, "1", "--step", "2")


def test_a_number_and_a_text_of_the_same_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = new_run(tmp_path / "run")
    add_batch(run, example(12, FIRST, prompt="number is in"), example("12", SECOND, prompt="text is in"))
    assert shown(run, capsys, "12").startswith("number is in")
    assert shown(run, capsys, '"12"').startswith("text is in")


def test_text_that_a_terminal_obeys_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = new_run(tmp_path / "run")
    names = ("prompt", "subject", "target_true", "target_false", "relation_id", "true_token", "false_token")
    texts = dict.fromkeys(names, f"{ESCAPE}\u202e\n")
    add_batch(run, example(1, FIRST, tokens=[ESCAPE, "\n", "日本", ""], donor_id=ESCAPE, **texts))
    printed = shown(run, capsys, "1")
    assert "\\x1b[31m" in printed and "日本" in printed and '""' in printed
    assert not {"\x1b", "\x9b", "\a", "\u202e"} & {*printed}


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, {"NO_COLOR": "1", "COLUMNS": "30"}, {"TERM": "dumb"}],
)
def test_plain_terminals_get_numbers(environment: dict[str, str], run: Path):
    done = subprocess.run(
        [sys.executable, "-m", "lit_attr", "show", str(run), "3"],
        env={**os.environ, "FORCE_COLOR": "1", **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert b"+20.00" in done.stdout
    if "PYTHONIOENCODING" in environment:
        done.stdout.decode("ascii")
    else:
        # No colour of a cell.
        assert b"48;" not in done.stdout
