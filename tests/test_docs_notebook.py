"""The notebook in docs/ runs from its first cell to its last, as Jupyter runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from project import REPOSITORY
from real_models import SMOLLM2, real_model

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


def run_in(folder: Path) -> str:
    """The outputs of all cells, run in a folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, timeout=600).execute()
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    # Heatmaps of the estimate, the exact effects and the first of the sample, a correlation, and a plot.
    assert outputs.count("<img") >= 3
    assert "facts are known" in outputs
    assert '"image/png"' in outputs
    (r,) = re.findall(r"r over all cells: (-?[0-9.]+)", outputs)
    return r


def test_every_cell_runs_with_the_demo_model(tmp_path: Path):
    assert float(run_in(tmp_path)) > 0.9


@pytest.mark.slow
@pytest.mark.registry
def test_every_cell_runs_with_a_real_model():
    real_model(SMOLLM2)
    assert float(run_in(NOTEBOOK.parent)) < 0.9


def test_it_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
