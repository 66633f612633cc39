"""Trainings of a small language model by other people's code, which the monitor watches."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.models.loading import DEMO_MODEL, load_tokenizer

FACTS = [*open_rows(SAMPLE)][::40]
SMALL = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}


class StrangersModule(pl.LightningModule):
    """A language model with dropout, one frozen parameter, one module that is never in train mode, and hooks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer = load_tokenizer(DEMO_MODEL)
        self.net = nn.ModuleDict({"lm": GPT2LMHeadModel(GPT2Config(vocab_size=len(self.tokenizer), **SMALL))})
        self.lm.transformer.wpe.weight.requires_grad_(False)
        self.lm.transformer.ln_f.register_forward_hook(lambda *_: None)
        self.losses: list[float] = []

    @property
    def lm(self) -> GPT2LMHeadModel:
        return self.net["lm"]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.lm.transformer.h[0].attn.eval()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.lm(input_ids=batch[0], labels=batch[0]).loss
        self.losses.append(float(loss))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.lm(input_ids=batch[0], labels=batch[0]).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loader(rows: int = 24, *, shuffle: bool = True) -> DataLoader[Any]:
    ids_NT = torch.randint(1000, (rows, 8), generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(ids_NT), batch_size=4, shuffle=shuffle)


def make_trainer(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "max_epochs": 2, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return pl.Trainer(callbacks=[*callbacks], **{**defaults, **quiet, **settings})


def fit(*callbacks: pl.Callback, **settings: Any) -> StrangersModule:
    pl.seed_everything(3, verbose=False)
    module = StrangersModule()
    make_trainer(*callbacks, **settings).fit(module, loader(), loader(8, shuffle=False))
    return module


def read_csv(folder: Path) -> dict[int, dict[str, float]]:
    """The monitor's numbers by step."""
    with (folder / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["attribution/contrasts"]]
    steps = [int(row["step"]) for row in rows]
    assert len(set(steps)) == len(steps)
    return {
        int(row["step"]): {
            name.removeprefix("attribution/"): float(value)
            for name, value in row.items()
            if name.startswith("attribution/") and value
        }
        for row in rows
    }


def csv_logger(folder: Path) -> CSVLogger:
    return CSVLogger(str(folder), name="", version="")
