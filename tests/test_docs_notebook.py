"""The notebook in docs/ runs from its first cell to its last, as Jupyter runs it."""

from __future__ import annotations

import json

import nbclient
import nbformat
from project import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


def test_every_cell_runs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, resources={"metadata": {"path": str(NOTEBOOK.parent)}}, timeout=300
    ).execute()
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    # Heatmaps of the estimate, the exact effects and the first of the sample, a correlation, and a plot.
    assert outputs.count("<img") >= 3
    assert "r over all cells: 0." in outputs
    assert "facts are known" in outputs
    assert '"image/png"' in outputs


def test_it_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
