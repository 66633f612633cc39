"""The plugin: its tab, its static files, and the routes that read runs under the log folder and write nothing."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard.plugins.base_plugin import FrontendMetadata, TBContext, TBPlugin
from werkzeug.wrappers import Request, Response

from lit_attr.errors import UserError
from lit_attr.views.tab.queries import RequestError
from lit_attr.views.tab.runs import LogFolder

if TYPE_CHECKING:
    from lit_attr.views.tab.answers import Answers

NAME = "attributions"
STATIC = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
WORTH_PACKING = 2_000  # bytes
A_DAY = "private, max-age=86400"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class AttributionsPlugin(TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """The Attributions tab.

    Args:
        context: What TensorBoard hands to its plugins.
    """

    plugin_name = NAME

    def __init__(self, context: TBContext) -> None:
        self._folder = LogFolder(context.logdir)
        self._answers: Answers | None = None
        self._lock = threading.Lock()

    def is_active(self) -> bool:
        """Whether there is a run, or the event files of one whose records the tab can name."""
        return bool(self._folder.runs()) or self._folder.has_records_above()

    def frontend_metadata(self) -> FrontendMetadata:
        """The tab's name and script."""
        return FrontendMetadata(es_module_path="/static/app.js", tab_name="Attributions")

    def get_plugin_apps(self) -> dict[str, App]:
        """The routes."""
        files = [path for path in sorted(STATIC.iterdir()) if path.suffix in TYPES]
        return {
            **{f"/static/{path.name}": _app(partial(_file, path)) for path in files},
            "/plotly.js": _app(_plotly),
            "/records/*": _app(self._records),
        }

    def _records(self, request: Request) -> Response:
        name = request.path.rpartition("/records/")[2]
        with self._lock:
            if self._answers is None:
                # Imported here: what it reads records with takes longer to import than the rest of the plugin.
                from lit_attr.views.tab.answers import Answers

                self._answers = Answers(self._folder)
        content, kind = self._answers.answer(name, request.args.to_dict(flat=False))
        return _packed(request, content, kind)


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
        except ImportError as error:
            return _line(f"{error}; install lit-attr again", 501)

    return app


def _file(path: Path, request: Request) -> Response:
    return _packed(request, path.read_bytes(), TYPES[path.suffix])


def _plotly(request: Request) -> Response:
    content = _packed_plotly()
    if content is None:
        raise RequestError("plotly, which draws the pictures, is not installed; pip install plotly", 404)
    # Every browser that knows ES modules unpacks it.
    return _response(content, TYPES[".js"], {"Content-Encoding": "gzip", "Cache-Control": A_DAY})


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
    if len(content) <= WORTH_PACKING or "gzip" not in request.headers.get("Accept-Encoding", ""):
        return _response(content, kind, {"Cache-Control": "no-cache"})
    return _response(gzip.compress(content, 1), kind, {"Cache-Control": "no-cache", "Content-Encoding": "gzip"})


def _line(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return _response(text.encode(errors="backslashreplace"), "text/plain; charset=utf-8", headers or {}, status)


def _response(content: bytes, kind: str, headers: Mapping[str, str], status: int = 200) -> Response:
    every = {"X-Content-Type-Options": "nosniff"}
    return Response(content, status=status, content_type=kind, headers={**every, **headers})
