"""Lightning's own command line, in other people's projects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.models.loading import DEMO_MODEL

ROWS = [*open_rows(SAMPLE)][:12]

PROJECT = '''
import json
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from lit_attr import ContrastBatch, ContrastCollator


class TheirModule(pl.LightningModule):
    """Takes batches of contrasts, and lists what it has seen."""

    def __init__(self, tokenizer: str) -> None:
        super().__init__()
        self.tokenizer, self.seen = tokenizer, []

    def predict_step(self, batch: ContrastBatch, batch_idx: int) -> None:
        self.seen += [["".join(contrast.tokens), contrast.true_token] for contrast in batch.contrasts]

    def on_predict_end(self) -> None:
        Path("seen.json").write_text(json.dumps(self.seen))


class TheirData(pl.LightningDataModule):
    """Rows of its own file, collated by our collator."""

    def __init__(self, path: str, collator: ContrastCollator) -> None:
        super().__init__()
        self.path, self.collator = path, collator

    def predict_dataloader(self) -> DataLoader:
        rows = json.loads(Path(self.path).read_text())
        return DataLoader(rows, batch_size=5, num_workers=1, collate_fn=self.collator)


if __name__ == "__main__":
    LightningCLI()
'''
OUR_MODULE = {"class_path": "lit_attr.AttributionModule", "init_args": {"layers": [0, -1], "verify": 0}}
OUR_DATA = {"class_path": "lit_attr.CounterfactDataModule", "init_args": {"limit": 12, "template": "Q: {prompt}"}}
OUR_WRITER = {"class_path": "lit_attr.AttributionWriter", "init_args": {"output_dir": "out"}}


def predict(folder: Path, model: dict[str, Any], data: dict[str, Any], *callbacks: dict[str, Any]) -> None:
    """Runs the project in its own process, as its author does."""
    (folder / "project.py").write_text(PROJECT)
    trainer = {"accelerator": "cpu", "callbacks": [*callbacks]}
    settings = {"model": model, "data": data, "trainer": trainer}
    (folder / "predict.yaml").write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "project.py", "predict", "--config", "predict.yaml"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def read(folder: Path) -> list[dict[str, Any]]:
    """The examples of the run, by prompt."""
    found = []
    for path in folder.glob("out/batches/*.json"):
        record = json.loads(path.read_text())
        assert record["layers"] == [0, 7]
        found += record["examples"]
    return sorted(found, key=lambda example: example["prompt"])


def test_our_module_data_and_writer_in_one_config(tmp_path: Path):
    predict(tmp_path, OUR_MODULE, OUR_DATA, OUR_WRITER)
    assert [example["prompt"] for example in read(tmp_path)] == sorted(f"Q: {row['prompt']}" for row in ROWS)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["contrasts"] == 12
    assert list(tmp_path.glob("lightning_logs/version_0/events.out.tfevents.*"))
    saved = yaml.safe_load((tmp_path / "lightning_logs" / "version_0" / "config.yaml").read_text())
    assert saved["model"]["class_path"] == "lit_attr.AttributionModule"


@pytest.mark.slow
def test_our_data_with_their_module(tmp_path: Path):
    model = {"class_path": "__main__.TheirModule", "init_args": {"tokenizer": DEMO_MODEL}}
    predict(tmp_path, model, OUR_DATA)
    seen = dict(json.loads((tmp_path / "seen.json").read_text()))
    answers = {f"Q: {row['prompt']}": row["target_true"] for row in ROWS}
    assert seen.keys() == answers.keys()
    assert all(answers[prompt].startswith(token) for prompt, token in seen.items())


@pytest.mark.slow
def test_our_module_with_their_data(tmp_path: Path):
    rows = [{**row, "case_id": 7 + place} for place, row in enumerate(ROWS)]
    for row in rows:
        row["answer"] = row.pop("target_true")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    settings = {"tokenizer": DEMO_MODEL, "columns": {"target_true": "answer"}, "template": "{subject}: {prompt}"}
    collator = {"class_path": "lit_attr.ContrastCollator", "init_args": settings}
    data = {"class_path": "__main__.TheirData", "init_args": {"path": "rows.json", "collator": collator}}
    predict(tmp_path, OUR_MODULE, data, OUR_WRITER)
    examples = read(tmp_path)
    assert {example["id"] for example in examples} == set(range(7, 19))
    prompts = sorted(f"{row['subject']}: {row['prompt']}" for row in ROWS)
    assert [example["prompt"] for example in examples] == prompts
    for example in examples:
        start, stop = example["subject_span"]
        # The span is that of the prompt, not of what the template puts in front.
        assert "".join(example["tokens"][:start]).startswith(f"{example['subject']}:")
        assert "".join(example["tokens"][start:stop]).strip() == example["subject"]
