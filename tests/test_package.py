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


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel in it; its dependencies are those the tests run with."""
    environment = tmp_path_factory.mktemp("installed") / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (ours,) = [path for path in sys.path if Path(path, "torch").is_dir()]
    (site / "dependencies.pth").write_text(ours)
    return python


def test_the_installed_wheel_runs_from_any_folder(python: Path, tmp_path: Path):
    done = subprocess.run(
        [python.parent / "lit-attr", "predict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "contrasts: 474 (0 from an earlier run), rows refused: 0" in done.stdout
    where = "import lit_attr; print(lit_attr.__file__)"
    located = subprocess.run(
        [python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert located.startswith(str(python.parent.parent))


# Each `ignore` is of a mistake: strict mypy complains of one that it does not need.
PROGRAM = """
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr import (
    Attribution,
    AttributionBatch,
    AttributionModule,
    AttributionMonitor,
    Attributions,
    AttributionWriter,
    Contrast,
    ContrastBatch,
    ContrastCollator,
    CounterfactDataModule,
    UserError,
    attribute,
    attribute_batch,
    build_contrasts,
    collate_contrasts,
    load_attributions,
)
from lit_attr.facts import read_facts
from lit_attr.locate import locate


class Theirs(pl.LightningModule):
    def __init__(self, net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.net, self.tokenizer = net, tokenizer

    def predict_step(self, batch: ContrastBatch, batch_idx: int) -> AttributionBatch:
        contrasts: tuple[Contrast, ...] = batch.contrasts
        return attribute_batch(self.net, locate(self.net), collate_contrasts(contrasts))


def run(theirs: Theirs, rows: list[dict[str, Any]], dataset: Dataset[dict[str, Any]], out: Path) -> list[float]:
    module = AttributionModule.from_lightning(theirs, "net", layers=[0, -1])
    collator = ContrastCollator(theirs.tokenizer, columns={"target_true": "answer"}, template="Q: {prompt}")
    trainer = pl.Trainer(callbacks=[AttributionWriter(str(out)), AttributionMonitor(rows)])
    trainer.predict(module, DataLoader(dataset, collate_fn=collator), ckpt_path="last.ckpt")
    trainer.predict(theirs, datamodule=CounterfactDataModule(rows, limit=3))
    scores: Tensor = module.predict_step(collator(rows), 0).scores_sum_BLT
    try:
        records: Attributions = attribute(theirs, facts=rows, layers="all", rule="exact")
    except UserError as error:
        raise SystemExit(str(error)) from error
    first: Attribution = records[0]
    few: Attributions = records[:3]
    contrasts, refused = build_contrasts(read_facts(rows).facts, theirs.tokenizer)
    numbers = [float(record["logit_diff"]) for record in load_attributions(out)]
    return [*numbers, float(scores.sum()), float(first["logit_diff"]), len(few), len(contrasts), refused[0].row]


attribute(rule="none")  # type: ignore[arg-type]
attribute(7)  # type: ignore[arg-type]
AttributionModule(layers="most")  # type: ignore[arg-type]
ContrastCollator()  # type: ignore[call-arg]
CounterfactDataModule(limit="many")  # type: ignore[arg-type]
len(load_attributions("out"))  # type: ignore[arg-type]
"""


@pytest.mark.slow
def test_a_strangers_strict_types_hold(python: Path, tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr
