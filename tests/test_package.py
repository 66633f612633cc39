"""The wheel: built, looked into, installed elsewhere, and run."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

ASSETS = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(REPOSITORY)], check=True, capture_output=True
    )
    (wheel,) = folder.glob("lit_attr-*.whl")
    assert list(folder.glob("lit_attr-*.tar.gz"))
    return wheel


def test_the_wheel_holds_the_assets_and_the_type_marker(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert "lit_attr/py.typed" in names
    assert "lit_attr/assets/sample_facts.jsonl" in names
    assert {f"lit_attr/assets/demo_model/{name}" for name in ASSETS} <= set(names)
    assert not [name for name in names if not name.startswith(("lit_attr/", "lit_attr-"))]


def test_the_installed_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path):
    # The wheel in an environment of its own; its dependencies are those of the one the tests run in.
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (ours,) = [path for path in sys.path if Path(path, "torch").is_dir()]
    (site / "dependencies.pth").write_text(ours)
    folder = tmp_path / "anywhere"
    folder.mkdir()
    script = tmp_path / "env" / "bin" / "lit-attr"
    done = subprocess.run(
        [script, "predict"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "contrasts: 474 (0 from an earlier run), rows refused: 0" in done.stdout
    where = "import lit_attr; print(lit_attr.__file__)"
    located = subprocess.run([python, "-c", where], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert located.startswith(str(site))
