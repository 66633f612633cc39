"""Arguments that take one of a few words refuse any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ONE, write_run

from lit_attr.callbacks.writer import AttributionWriter
from lit_attr.errors import ArgumentError
from lit_attr.records.exports.export import export
from lit_attr.records.reading import load_attributions
from lit_attr.views.paper.figures import write_figures

CHOICES: list[tuple[str, Callable[[Path, Any], Any]]] = [
    ("kind", load_attributions),
    ("to", export),
    ("per", lambda folder, word: export(folder, "inseq", per=word)),
    ("format", lambda folder, word: list(write_figures([folder], format=word))),
    ("writer.heatmaps", lambda folder, word: AttributionWriter(str(folder / "out"), heatmaps=word)),
]


@pytest.mark.parametrize(
    "word",
    ["polars", "", "Records", None, 3, "x" * 10_000],
    ids=["other", "empty", "case", "none", "number", "long"],
)
@pytest.mark.parametrize(("argument", "call"), CHOICES, ids=[name for name, _ in CHOICES])
def test_another_word_is_refused(argument: str, call: Callable[[Path, Any], Any], word: Any, tmp_path: Path):
    if (argument, word) == ("per", None):
        pytest.skip("it is the default")
    folder = write_run(tmp_path / "run", [ONE])
    before = sorted(folder.rglob("*"))
    with pytest.raises(ArgumentError, match=rf"^{argument}: .* is not one of \w+, \w+") as refused:
        call(folder, word)
    assert len(str(refused.value)) < 300
    assert sorted(folder.rglob("*")) == before
