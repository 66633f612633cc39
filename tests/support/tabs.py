"""Runs written by hand for the Attributions tab, and TensorBoard's application over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sealed import RUN, write_batch, write_manifest
from tensorboard.backend.application import TensorBoardWSGI
from tiny_runs import example
from werkzeug.test import Client

from lit_attr.records.files import file_name, write_sealed
from lit_attr.views.tab.plugin import AttributionsPlugin

HEAD = {"format": "lit-attr/attributions", "version": 2, "rule": "gradient", "layers": [0, 1]}
ROUTE = "/data/plugin/attributions/records/"

Ask = Callable[..., Any]


def new_run(folder: Path, **data: Any) -> Path:
    """An empty run folder."""
    (folder / "batches").mkdir(parents=True)
    (folder / "exact").mkdir()
    model = {"model_name": "tiny", "component": "mlp", "rule": "gradient", "layers": [0, 1]}
    write_manifest(folder, model=model, data={"step": "divergence", **data})
    return folder


def add_batch(folder: Path, *examples: dict[str, Any]) -> Path:
    return write_batch(folder, {**HEAD, "examples": list(examples)})


def add_exact(folder: Path, identity: int | str, effects_LT: Sequence[Sequence[float]], **other: Any) -> Path:
    path = folder / "exact" / file_name(identity, 0)
    write_sealed(
        path,
        {
            "format": "lit-attr/exact",
            "version": 2,
            "layers": [0, 1],
            "rule": "gradient",
            "run": RUN,
            "ablation": "zero",
            "id": identity,
            "step": 0,
            "place": 0,
            "effects": {"mlp": effects_LT},
            "resolution": 1e-6,
            "curves": None,
            "refused": None,
            **other,
        },
    )
    return path


def four_facts(folder: Path, **data: Any) -> Path:
    """A run of four facts in two batch files; the first has exact effects."""
    new_run(folder, **data)
    add_batch(
        folder,
        example(3, FIRST, logit_diff=1.5, prob_true=0.4, rank_true=0, prompt="Spain is in", target_true=" Europe"),
        example(1, SECOND, logit_diff=-2.0, prob_true=0.1, rank_true=7, relation_id="P36", prompt="Peru is in"),
    )
    add_batch(
        folder,
        example(10, THIRD, logit_diff=0.5, prob_true=0.2, rank_true=1, relation_id="P36"),
        example("text", FOURTH, logit_diff=3.0, prob_true=0.9, rank_true=0),
    )
    # The first token does not count: ‖(0, 0, 0, 0, 0, 3)‖ / ‖(1, 2, 4, 3, 0, 5)‖ = 3 / √55.
    add_exact(folder, 3, [[0, 1, 2, 4], [0, 3, 0, 5]])
    return folder


def client_of(folder: Path | str) -> Client:
    """TensorBoard's own application with the plugin alone, over a log folder."""
    return Client(TensorBoardWSGI([AttributionsPlugin(SimpleNamespace(logdir=str(folder)))]))


def asker(client: Client) -> Ask:
    def ask(route: str, *, status: int = 200, **parameters: Any) -> Any:
        answer = client.get(ROUTE + route, query_string=parameters)
        assert answer.status_code == status, answer.get_data(as_text=True)
        return json.loads(answer.data) if status == 200 else answer.get_data(as_text=True)

    return ask


# By hand: the largest score at any token but the first is 8 (layer 1, token 3), -6 (layer 0, token 3), 5 and 2.
FIRST = [[10.0, 1, 2, 4], [20, 3, 0, 8]]
SECOND = [[-5.0, 2, 0, -6], [-1, 1, 0, -4]]
THIRD = [[1.0, 0, 5, 0], [0, 0, 0, 0]]
FOURTH = [[1.0, 0, 0, 0], [0, 0, 2, 0]]
