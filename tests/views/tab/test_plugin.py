"""The routes: what cannot be answered is a line with a status of 4xx, and nothing outside a run is read."""

from __future__ import annotations

import builtins
import logging
import os
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tabs import ROUTE, Ask, client_of, new_run

from lit_attr.facts.roles import MEAN_ROLES

OUTSIDE = [
    "..",
    "../one",
    "one/..",
    "/etc",
    "/etc/passwd",
    "one/batches",
    "%2e%2e",
    "..\\one",
    "\x00",
    "",
    "ONE",
    ".",
]


def line_of(answer: Any) -> str:
    text: str = answer.get_data(as_text=True)
    assert 400 <= answer.status_code < 500, text
    assert text and len(text.splitlines()) == 1 and len(text) < 700 and "Traceback" not in text
    return text


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("route", ["run", "facts", "fact", "overview", "facts.csv", "pair"])
def test_only_runs_that_were_found_can_be_named(route: str, name: str, run: Path):
    line_of(
        client_of(run.parent).get(
            ROUTE + route, query_string={"run": name, "id": "3"} if route == "fact" else {"run": name}
        )
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {"page": "0"},
        {"page": "-1"},
        {"page": "99999999999999999999999"},
        {"page": "999999999999999"},
        {"page": "1e3"},
        {"page": "٣"},
        {"size": "0"},
        {"size": "201"},
        {"size": "100000000"},
        {"sort": "__class__"},
        {"sort": "cell"},
        {"order": "up"},
        {"known": "maybe"},
        {"layer": "0"},
        {"role": "last"},
        {"layer": "7", "role": "last"},
        {"layer": "0", "role": "nobody"},
        {"component": "../mlp"},
        {"search": "x" * 501},
        {"folder": "/etc"},
        {"run": "one"},
    ],
)
def test_values_that_are_not_allowed(parameters: dict[str, str], run: Path):
    # The last one gives the run twice.
    query = [("run", "one"), *parameters.items()]
    line_of(client_of(run.parent).get(f"{ROUTE}facts", query_string="&".join(f"{k}={v}" for k, v in query)))


@pytest.mark.parametrize(
    "identity", ["", "x", "1.5", "true", "null", "[3]", '{"a":1}', "../3", "9" * 400, "[" * 400]
)
def test_ids_that_are_none(identity: str, run: Path):
    line_of(client_of(run.parent).get(f"{ROUTE}fact", query_string={"run": "one", "id": identity}))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("route", ["records/runs", "records/run?run=one", "static/app.js", "plotly.js"])
def test_get_alone(method: str, route: str, run: Path):
    answer = client_of(run.parent).open(f"/data/plugin/attributions/{route}", method=method)
    assert answer.status_code == 405 and answer.headers["Allow"] == "GET"


@pytest.mark.parametrize(
    "path",
    [
        "static/../plugin.py",
        "static/..%2fplugin.py",
        "static/",
        "static/plugin.py",
        "static//etc/passwd",
        "records/",
        "records/../plugin.py",
        "records/one/manifest.json",
        "records//etc/passwd",
        "records/__class__",
    ],
)
def test_no_path_of_a_request_is_opened(path: str, run: Path):
    line_of(client_of(run.parent).get(f"/data/plugin/attributions/{path}"))


def test_random_queries(run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """200 of them: an answer or a line, no error in the log, and no file outside the run and the package."""
    client = client_of(run.parent)
    assert client.get(f"{ROUTE}overview", query_string={"run": "one"}).status_code == 200
    opened: list[str] = []
    real = builtins.open

    def watched(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and watching and isinstance(arguments[0], (str, bytes)):
            opened.append(os.fsdecode(arguments[0]))

    watching = True
    sys.addaudithook(watched)
    generator = random.Random(0)
    names = [
        "run",
        "page",
        "size",
        "sort",
        "order",
        "search",
        "id",
        "step",
        "layer",
        "role",
        "known",
        "other",
        "x",
    ]
    words = [
        "one",
        "..",
        "/etc/passwd",
        "1",
        "-1",
        "0",
        "asc",
        "last",
        "\x00",
        "�",
        "<script>",
        "'; --",
        *MEAN_ROLES,
    ]
    answered = 0
    for _ in range(200):
        count = generator.randrange(6)
        query = {
            generator.choice(names): generator.choice(
                [*words, "".join(generator.choices(string.printable, k=generator.randrange(40)))]
            )
            for _ in range(count)
        }
        route = generator.choice(["runs", "run", "facts", "fact", "overview", "pair", "facts.csv", "nothing"])
        answer = client.get(ROUTE + route, query_string=query)
        if answer.status_code == 200:
            answered += 1
        else:
            line_of(answer)
    watching = False
    assert 0 < answered < 100
    assert builtins.open is real
    package = Path(__file__).parents[3] / "lit_attr"
    assert {
        path for path in opened if not path.startswith((str(run), str(package), sys.prefix, sys.base_prefix))
    } == set()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_static_files_and_plotly(run: Path):
    client = client_of(run.parent)
    script = client.get("/data/plugin/attributions/static/app.js")
    assert script.status_code == 200 and script.mimetype == "text/javascript" and b"render" in script.data
    plotly = client.get("/data/plugin/attributions/plotly.js", headers={"Accept-Encoding": "gzip"})
    assert plotly.status_code == 200 and plotly.headers["Content-Encoding"] == "gzip"
    assert plotly.headers["X-Content-Type-Options"] == "nosniff"


def test_a_damaged_manifest_is_a_line(run: Path, ask: Ask):
    (run / "manifest.json").write_bytes(b"{")
    assert "manifest.json" in ask("run", status=422, run="one")
    assert ask("runs")["runs"] == ["one"]


def test_runs_are_found_under_the_log_folder(tmp_path: Path):
    new_run(tmp_path / "a" / "deep" / "run")
    new_run(tmp_path / "b")
    (tmp_path / "b" / "replaced-20260101").mkdir()
    new_run(tmp_path / "b" / "replaced-20260101" / "old")
    (tmp_path / "loop").symlink_to(tmp_path)
    answer = client_of(tmp_path).get(f"{ROUTE}runs").json
    assert answer == {"runs": ["a/deep/run", "b"], "advice": None}
    assert client_of(tmp_path / "b").get(f"{ROUTE}runs").json["runs"] == ["b"]


def test_where_there_are_event_files_alone_the_folder_is_named(run: Path, tmp_path: Path):
    events = run / "lightning_logs" / "version_0"
    events.mkdir(parents=True)
    for folder in (events, events.parent):
        answer = client_of(folder).get(f"{ROUTE}runs").json
        assert answer["runs"] == [] and f"tensorboard --logdir {run}" in answer["advice"]
    (tmp_path / "empty").mkdir()
    assert "Give the output folder" in client_of(tmp_path / "empty").get(f"{ROUTE}runs").json["advice"]


def test_the_plugin_imports_neither_torch_nor_lightning(run: Path):
    """Nor, before the first request, what it reads records with."""
    program = f"""
import sys
from types import SimpleNamespace
from tensorboard.backend.application import TensorBoardWSGI
from werkzeug.test import Client
from lit_attr.views.tab.loader import AttributionsLoader
plugin = AttributionsLoader().load(SimpleNamespace(logdir={str(run.parent)!r}))
plugin.get_plugin_apps(), plugin.is_active()
assert not {{"torch", "lightning", "msgspec", "scipy", "plotly"}} & set(sys.modules)
answer = Client(TensorBoardWSGI([plugin])).get("{ROUTE}overview?run=one")
assert answer.status_code == 200
assert not {{"torch", "lightning", "transformers", "datasets", "plotly"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_tensorboard_starts_where_something_is_missing(run: Path):
    program = """
import sys
from types import SimpleNamespace
sys.modules["lit_attr.views.tab.plugin"] = None
from lit_attr.views.tab.loader import AttributionsLoader
assert AttributionsLoader().load(SimpleNamespace(logdir=".")) is None
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert len(done.stderr.splitlines()) == 1 and "TensorBoard has no tab Attributions" in done.stderr


def test_tensorboard_finds_the_plugin():
    from tensorboard.default import get_dynamic_plugins

    assert "AttributionsLoader" in [plugin.__name__ for plugin in get_dynamic_plugins()]
