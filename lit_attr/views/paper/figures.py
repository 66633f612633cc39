"""Writing the figures of runs.

- `facts`: a panel for each fact, its tokens downwards, layers to the right
- `roles`: mean score by token role and layer, over all contrasts and over the known ones
- `profiles`: a curve for each role over the layers with its 95% confidence band, and sums over 10 layers
- `relations`: the map of `roles` for each of the largest relations
- `comparison`: with two runs or more, their profiles, a panel for each role
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure

from lit_attr.errors import ArgumentError, UserError, check_choice
from lit_attr.records.files import check_path, write_bytes
from lit_attr.views.paper.facts import draw_facts
from lit_attr.views.paper.maps import draw_relations, draw_roles
from lit_attr.views.paper.profiles import draw_comparison, draw_profiles
from lit_attr.views.paper.run import Run, pick_facts, read_run
from lit_attr.views.paper.style import STYLE, fit

MAX_PANELS = 24
DPI = 300  # of PNG files
# Dates would make each file of the same figure different.
UNDATED: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def write_figures(
    folders: Sequence[Path],
    *,
    figures: Path | None = None,
    format: Literal["pdf", "svg", "png"] = "pdf",  # noqa: A002  # the command line's name
    facts: int = 6,
    ids: Sequence[str] = (),
    relations: int = 6,
    known: bool = False,
) -> Iterator[Path]:
    """Draws figures for print from the records of runs, and writes them.

    Args:
        folders: The output folders of the runs.
        figures: The folder for the figures. Default: `plots` in the first of `folders`.
        format: The format of the files.
        facts: How many facts, spread over each run, are drawn; at most 24.
        ids: The ids of the facts to draw instead, known or not.
        relations: How many of the largest relations are drawn; at most 24.
        known: Whether to draw known facts only. The figure `roles` has both.

    Yields:
        The path of each file, once it is written.

    Raises:
        UserError: An argument is wrong, a folder is not an output folder, or a file cannot be written.
    """
    check_choice("format", format, UNDATED)
    for name, count in (("facts", facts), ("relations", relations)):
        if not 0 <= count <= MAX_PANELS:
            raise ArgumentError(name, f"{count} is not from 0 to {MAX_PANELS}")
    if not folders:
        raise ArgumentError("folders", "there is none; give the output folder of a run")
    for name, path in [("folders", folder) for folder in folders] + [("figures", figures or folders[0])]:
        check_path(name, path)
    runs = [read_run(folder) for folder in folders]
    target = folders[0] / "plots" if figures is None else figures
    for name, draw in _plan(runs, facts=facts, ids=ids, relations=relations, known=known):
        path = target / f"{name}.{format}"
        # Not around the yield: whatever the caller draws in between keeps its own style.
        with mpl.rc_context(STYLE):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                content = BytesIO()
                draw().savefig(content, format=format, dpi=DPI, metadata=UNDATED[format])
                write_bytes(path, content.getvalue())
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{path}: cannot be written ({reason}); give another folder") from error
        yield path


def _plan(
    runs: Sequence[Run], *, facts: int, ids: Sequence[str], relations: int, known: bool
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Each figure's path within the folder of figures, without its suffix, and the function that draws it."""
    folders = [run.folder.resolve().name for run in runs]
    if len(set(folders)) < len(folders):
        folders = [f"{place}-{name}" for place, name in enumerate(folders, 1)]
    shown = [run.only_known() if known else run for run in runs]
    for run, taken, name in zip(runs, shown, folders, strict=True):
        folder = f"{name}/" if len(runs) > 1 else ""
        if records := pick_facts(run, facts, ids, known=known):
            yield f"{folder}facts", partial(draw_facts, records, run)
        yield f"{folder}roles", partial(draw_roles, run)
        yield f"{folder}profiles", partial(draw_profiles, taken)
        if relations and any(taken.relations_N):
            yield f"{folder}relations", partial(draw_relations, taken, relations)
    if len(runs) > 1:
        titles = [run.title for run in runs]
        names = titles if len(set(titles)) == len(titles) else [fit(name, "run") for name in folders]
        yield "comparison", partial(draw_comparison, shown, names)
