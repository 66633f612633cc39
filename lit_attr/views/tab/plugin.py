"""The plugin: the routes of the Attributions tab, which read runs under the log folder and write nothing."""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from tensorboard.plugins.base_plugin import FrontendMetadata, TBContext, TBPlugin
from werkzeug.wrappers import Request, Response

from lit_attr.errors import UserError
from lit_attr.views.tab.facts import fact_page
from lit_attr.views.tab.index import RunIndex
from lit_attr.views.tab.overviews import overview_page, run_page
from lit_attr.views.tab.pairs import pair_page
from lit_attr.views.tab.queries import (
    PAGED,
    TABLE,
    RequestError,
    TableQuery,
    check_names,
    key_of,
    page_of,
    table_query,
)
from lit_attr.views.tab.runs import LogFolder
from lit_attr.views.tab.tables import component_of, table_csv, table_page

logger = logging.getLogger("lit_attr")

NAME = "attributions"
STATIC = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
WORTH_PACKING = 2_000  # bytes

Answer = Callable[[Mapping[str, str]], Any]
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class AttributionsPlugin(TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """The Attributions tab.

    Args:
        context: What TensorBoard hands to its plugins.
    """

    plugin_name = NAME

    def __init__(self, context: TBContext) -> None:
        self._folder = LogFolder(context.logdir)
        self._indexes: dict[Path, RunIndex] = {}
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._lock, self._summing = threading.Lock(), threading.Lock()

    def is_active(self) -> bool:
        """Whether there is a run, or the event files of one, whose records the tab can name."""
        return bool(self._folder.runs()) or self._folder.has_records_above()

    def frontend_metadata(self) -> FrontendMetadata:
        """The tab's name and script."""
        return FrontendMetadata(es_module_path="/static/app.js", tab_name="Attributions")

    def get_plugin_apps(self) -> dict[str, App]:
        """The routes."""
        files = {f"/static/{path.name}": path for path in sorted(STATIC.iterdir()) if path.suffix in TYPES}
        run = {"run"}
        answers: dict[str, tuple[Answer, Collection[str]]] = {
            "/runs": (self._runs, ()),
            "/run": (self._run, run),
            "/facts": (self._facts, run | PAGED),
            "/fact": (self._fact, run | TABLE | {"id", "step"}),
            "/overview": (self._overview, run | {"component"}),
            "/pair": (self._pair, run | {"component", "other"}),
        }
        return {
            **{route: _app(partial(_file, path)) for route, path in files.items()},
            "/plotly.js": _app(_plotly),
            "/facts.csv": _app(partial(self._csv, run | TABLE)),
            **{route: _app(partial(_json, *each)) for route, each in answers.items()},
        }

    def _runs(self, given: Mapping[str, str]) -> dict[str, Any]:
        names = [*self._folder.runs()]
        return {"runs": names, "advice": None if names else self._folder.advice()}

    def _run(self, given: Mapping[str, str]) -> dict[str, Any]:
        index = self._index(given, "run")
        index.refresh()
        return run_page(index)

    def _facts(self, given: Mapping[str, str]) -> dict[str, Any]:
        return table_page(self._read_index(given), table_query(given), *page_of(given))

    def _fact(self, given: Mapping[str, str]) -> dict[str, Any]:
        key = key_of(given)
        return fact_page(self._read_index(given), table_query(given), key)

    def _overview(self, given: Mapping[str, str]) -> dict[str, Any]:
        index = self._read_index(given)
        component = component_of(index, table_query(given))
        return self._keep(
            ("overview", index.folder.path, component), index.version, partial(overview_page, index, component)
        )

    def _pair(self, given: Mapping[str, str]) -> dict[str, Any]:
        first, second = self._read_index(given), self._read_index(given, "other")
        component = component_of(first, table_query(given))
        component_of(second, table_query({"component": component}))
        return self._keep(
            ("pair", first.folder.path, second.folder.path, component),
            (first.version, second.version),
            partial(pair_page, first, second, component),
        )

    def _csv(self, allowed: Collection[str], request: Request) -> Response:
        given = check_names(request.args.to_dict(flat=False), allowed)
        query: TableQuery = table_query(given)
        response = _packed(request, table_csv(self._read_index(given), query).encode(), "text/csv; charset=utf-8")
        response.headers["Content-Disposition"] = 'attachment; filename="facts.csv"'
        return response

    def _index(self, given: Mapping[str, str], name: str) -> RunIndex:
        """The index of a run, perhaps not read yet. Only runs that were found are there to be named."""
        runs = self._folder.runs()
        path = runs.get(given.get(name, ""))
        if path is None:
            raise RequestError(f"{name}: there is no such run; refresh the page", 404)
        with self._lock:
            if path not in self._indexes:
                self._indexes[path] = RunIndex(path)
            return self._indexes[path]

    def _read_index(self, given: Mapping[str, str], name: str = "run") -> RunIndex:
        index = self._index(given, name)
        if not index.version:
            index.refresh()
        return index

    def _keep(self, name: tuple[Any, ...], version: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What takes seconds to make, until the records change; made once where several ask."""
        with self._summing:
            kept = self._kept.get(name)
            if kept is None or kept[0] != version:
                kept = self._kept[name] = (version, make())
            found: dict[str, Any] = kept[1]
            return found


def _app(answer: Callable[[Request], Response]) -> App:
    """A route: GET alone, and an answer of one line for what cannot be answered."""

    @Request.application
    def app(request: Request) -> Response:
        if request.method != "GET":
            return _line("the tab answers GET alone", 405, {"Allow": "GET"})
        try:
            return answer(request)
        except RequestError as error:
            return _line(str(error), error.status)
        except UserError as error:
            return _line(str(error), 422)
        except OSError as error:
            # A file of a run that is moved or replaced meanwhile.
            return _line(f"a file of the run cannot be read ({error.strerror}); refresh the page", 404)

    return app


def _json(answer: Answer, allowed: Collection[str], request: Request) -> Response:
    given = check_names(request.args.to_dict(flat=False), allowed)
    content = orjson.dumps(answer(given), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return _packed(request, content, "application/json")


def _file(path: Path, request: Request) -> Response:
    return _packed(request, path.read_bytes(), TYPES[path.suffix])


def _plotly(request: Request) -> Response:
    content = _packed_plotly()
    if content is None:
        raise RequestError("plotly is not installed, which draws the pictures; pip install plotly", 404)
    response = Response(content, content_type=TYPES[".js"])
    response.headers["Content-Encoding"] = "gzip"
    response.headers["Cache-Control"] = "private, max-age=86400"
    return _safe(response)


@cache
def _packed_plotly() -> bytes | None:
    """Plotly's script, packed once: it has 5 MB. The package itself is not imported."""
    spec = find_spec("plotly")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return gzip.compress(path.read_bytes(), 5)
    return None


def _packed(request: Request, content: bytes, kind: str) -> Response:
    is_packed = len(content) > WORTH_PACKING and "gzip" in request.headers.get("Accept-Encoding", "")
    response = Response(gzip.compress(content, 1) if is_packed else content, content_type=kind)
    if is_packed:
        response.headers["Content-Encoding"] = "gzip"
    response.headers["Cache-Control"] = "no-cache"
    return _safe(response)


def _line(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    response = Response(text, status=status, content_type="text/plain; charset=utf-8", headers=dict(headers or {}))
    return _safe(response)


def _safe(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
