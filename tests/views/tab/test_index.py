"""The index while a run goes on, and where files are damaged."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path

import pytest
from make_large_run import make_run
from sealed import reseal
from tabs import FIRST, ROUTE, SECOND, Ask, add_batch, add_exact, client_of
from tiny_runs import example

DAMAGES = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a changed number": lambda content: content.replace(b"0.5", b"0.6", 1),
    "not JSON": lambda content: b"\x00\xff" * 100,
    "another object": lambda content: b'{"format": "x"}',
    "no example": lambda content: json.dumps({**json.loads(content), "examples": []}).encode(),
}
SEALED = ("a changed number", "no example")


def batch_of(run: Path, identity: int) -> Path:
    return run / "batches" / f"{identity:08d}-0.json"


def test_a_refresh_sees_what_was_added(run: Path, ask: Ask):
    assert ask("run", run="one")["contrasts"] == 4
    add_batch(run, example(7, FIRST, prompt="Chile is in"))
    assert ask("facts", run="one")["total"] == 4
    assert ask("run", run="one")["contrasts"] == 5
    assert [row["id"] for row in ask("facts", run="one")["rows"]] == [1, 3, 7, 10, "text"]


def test_exact_effects_that_come_later_are_compared(run: Path, ask: Ask):
    assert ask("facts", run="one")["rows"][0]["error"] is None
    add_exact(run, 1, [[0, 2, 0, -6], [0, 1, 0, 0]])
    ask("run", run="one")
    rows = ask("facts", run="one")["rows"]
    # ‖(0, 0, 0, 0, 0, -4)‖ / ‖(2, 0, -6, 1, 0, 0)‖.
    assert rows[0]["error"] == pytest.approx(4 / sqrt(41))
    assert rows[1]["error"] == pytest.approx(3 / sqrt(55))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_batch_costs_itself_and_one_line(damage: str, run: Path, ask: Ask):
    path = batch_of(run, 10)
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    found = ask("run", run="one")
    assert found["contrasts"] == 2
    (line,) = found["problems"]
    reason = "" if damage in SEALED else "not a whole batch file ("
    assert line.startswith(f"{path}: {reason}") and "\n" not in line
    assert [row["id"] for row in ask("facts", run="one")["rows"]] == [1, 3]
    assert ask("overview", run="one")["summary"]["contrasts"] == 2
    # Written whole, it is back.
    path.write_bytes(whole)
    assert ask("run", run="one")["problems"] == [] and ask("facts", run="one")["total"] == 4


def test_a_damaged_file_of_exact_effects_costs_itself(run: Path, ask: Ask):
    (run / "exact" / "00000003-0.json").write_bytes(b"{")
    found = ask("run", run="one")
    assert (found["contrasts"], found["checked"], len(found["problems"])) == (4, 0, 1)


def test_files_of_another_run_and_of_other_layers_are_left_out(run: Path, ask: Ask):
    reseal(batch_of(run, 10), lambda content: content.update(run="another"))
    reseal(batch_of(run, 3), lambda content: content.update(layers=[4, 5]))
    add_batch(run, example(0, SECOND))
    found = ask("run", run="one")
    assert found["contrasts"] == 1 and len(found["problems"]) == 2
    reason = "it has other layers, components or another rule than the others; move it away"
    assert f"{batch_of(run, 3)}: {reason}" in found["problems"]


def test_requests_at_once_see_one_whole_index(tmp_path: Path):
    make_run(tmp_path / "logs" / "many", 640, 8)
    routes = ["facts", "run", "facts?sort=cell&layer=0&role=last", "facts?search=country"] * 3
    client = client_of(tmp_path / "logs")
    # What answers is imported at the first request.
    client.get(f"{ROUTE}runs")

    def total(route: str) -> int:
        found = client.get(f"{ROUTE}{route}{'&' if '?' in route else '?'}run=many").json
        return found["contrasts"] if route == "run" else found["total"]

    with ThreadPoolExecutor(len(routes)) as pool:
        assert [*pool.map(total, routes)] == [640] * len(routes)


def test_links_out_of_the_run_are_not_followed(run: Path, ask: Ask, tmp_path: Path):
    batch_of(run, 10).rename(tmp_path / "outside.json")
    batch_of(run, 10).symlink_to(tmp_path / "outside.json")
    assert ask("run", run="one")["contrasts"] == 2


def test_a_file_that_is_gone_takes_its_facts_along(run: Path, ask: Ask):
    assert ask("run", run="one")["contrasts"] == 4
    batch_of(run, 10).unlink()
    assert ask("run", run="one")["contrasts"] == 2


def test_half_written_files_are_not_looked_at(run: Path, ask: Ask):
    (run / "batches" / ".00000020-0.json.99.lit-attr.tmp").write_bytes(b'{"form')
    found = ask("run", run="one")
    assert (found["contrasts"], found["problems"]) == (4, [])


def test_a_file_that_changed_since_is_not_read_as_another_fact(run: Path, ask: Ask):
    ask("run", run="one")
    batch_of(run, 10).unlink()
    add_batch(run, example(10, FIRST, step=0))
    reseal(batch_of(run, 10), lambda content: content["examples"][0].update(id="text"))
    message = ask("fact", status=422, run="one", id="10")
    assert f"{batch_of(run, 10)}: it was changed meanwhile; refresh the page, or run again" in message


def test_an_empty_run(run: Path, ask: Ask):
    for path in (run / "batches").iterdir():
        path.unlink()
    assert ask("run", run="one")["contrasts"] == 0
    assert ask("facts", run="one") == {"total": 0, "page": 1, "size": 50, "rows": []}
    assert "no contrast yet" in ask("overview", status=404, run="one")


def test_another_run_in_the_same_folder(run: Path, ask: Ask):
    assert ask("run", run="one")["contrasts"] == 4
    for path in (*(run / "batches").iterdir(), run / "manifest.json"):
        reseal(path, lambda content: content.update(run="later"))
    assert ask("run", run="one")["contrasts"] == 4
    assert ask("run", run="one")["checked"] == 0
