"""What the tab's requests are answered with. Imported at the first request: TensorBoard starts without it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from lit_attr.errors import ArgumentError
from lit_attr.evaluation.index.runs import IndexedRun, RunIndex
from lit_attr.views.tab.facts import fact_page
from lit_attr.views.tab.overviews import overview_page, run_page
from lit_attr.views.tab.pairs import pair_page
from lit_attr.views.tab.queries import PAGED, TABLE, RequestError, check_names, key_of, page_of, table_query
from lit_attr.views.tab.runs import LogFolder
from lit_attr.views.tab.tables import component_of, table_csv, table_page

JSON, CSV = "application/json", "text/csv; charset=utf-8"
RUN = {"run"}
MOST_KEPT = 16

Given = Mapping[str, str]


class Answers:
    """Answers from the runs under a log folder. Several requests may ask at once.

    Args:
        folder: The log folder.
    """

    def __init__(self, folder: LogFolder) -> None:
        self._folder = folder
        self._runs_by_path: dict[Path, IndexedRun] = {}
        self._kept: dict[tuple[Any, ...], tuple[tuple[RunIndex, ...], dict[str, Any]]] = {}
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._answers: dict[str, tuple[Callable[[Given], Any], Collection[str]]] = {
            "runs": (self._runs, ()),
            "run": (self._run, RUN),
            "facts": (self._facts, RUN | PAGED),
            "facts.csv": (self._csv, RUN | TABLE),
            "fact": (self._fact, RUN | TABLE | {"id", "step"}),
            "overview": (self._overview, RUN | {"component"}),
            "pair": (self._pair, RUN | {"component", "other"}),
        }

    def answer(self, name: str, parameters: Mapping[str, list[str]]) -> tuple[bytes, str]:
        """The content of an answer, and its media type.

        Args:
            name: The last part of the route.
            parameters: The values of each parameter.

        Raises:
            RequestError: There is no such answer, or a parameter is not allowed.
            UserError: A file of the run is damaged.
        """
        if name not in self._answers:
            raise RequestError(f"there are {', '.join(self._answers)}", 404)
        make, allowed = self._answers[name]
        try:
            found = make(check_names(parameters, allowed))
        except ArgumentError as error:
            # A component or a layer that the run does not have.
            raise RequestError(str(error), 404) from error
        if isinstance(found, str):
            return found.encode(errors="backslashreplace"), CSV
        return orjson.dumps(found), JSON

    def _runs(self, given: Given) -> dict[str, Any]:
        names = [*self._folder.runs()]
        return {"runs": names, "advice": None if names else self._folder.advice()}

    def _run(self, given: Given) -> dict[str, Any]:
        return run_page(self._named(given, "run").refresh())

    def _facts(self, given: Given) -> dict[str, Any]:
        return table_page(self._read_index(given), table_query(given), *page_of(given))

    def _csv(self, given: Given) -> str:
        return table_csv(self._read_index(given), table_query(given))

    def _fact(self, given: Given) -> dict[str, Any]:
        key = key_of(given)
        return fact_page(self._read_index(given), table_query(given), key)

    def _overview(self, given: Given) -> dict[str, Any]:
        index = self._read_index(given)
        component = component_of(index, table_query(given))
        name = "overview", index.folder.path, component
        return self._keep(name, (index,), partial(overview_page, index, component))

    def _pair(self, given: Given) -> dict[str, Any]:
        first, second = self._read_index(given), self._read_index(given, "other")
        component = component_of(first, table_query(given))
        component_of(second, table_query({"component": component}))
        name = "pair", first.folder.path, second.folder.path, component
        return self._keep(name, (first, second), partial(pair_page, first, second, component))

    def _named(self, given: Given, name: str) -> IndexedRun:
        """A run that was found under the log folder; no other one can be named."""
        path = self._folder.runs().get(given.get(name, ""))
        if path is None:
            raise RequestError(f"{name}: there is no such run; refresh the page", 404)
        with self._lock:
            if path not in self._runs_by_path:
                self._runs_by_path[path] = IndexedRun(path)
            return self._runs_by_path[path]

    def _read_index(self, given: Given, name: str = "run") -> RunIndex:
        return self._named(given, name).index()

    def _keep(
        self, name: tuple[Any, ...], indexes: tuple[RunIndex, ...], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What takes seconds to make, until a refresh makes another index; made once where several ask."""
        with self._making:
            kept = self._kept.get(name)
            if kept is None or kept[0] != indexes:
                self._kept.pop(name, None)
                kept = self._kept[name] = (indexes, make())
                # Dicts keep their order: the oldest goes.
                while len(self._kept) > MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
            return kept[1]
