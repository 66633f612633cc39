"""Predicts the first rows of the sample with as many processes as run it: `predict_shares.py OUT COUNT...`.

Each count gets its own folder in OUT. With FAIL=RANK in the environment, the process of that rank fails, and with
OTHER=RANK it has other rows than the others. ONLY is the setting `only` of the module.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_attr.callbacks.writer import AttributionWriter
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule


class FailingModule(AttributionModule):
    def answers(self, batch: Any) -> Any:
        self.fail()
        return super().answers(batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.fail()
        return super().predict_step(batch, batch_idx, dataloader_idx)

    def fail(self) -> None:
        if str(self.global_rank) == os.environ.get("FAIL"):
            raise ValueError(f"broken in process {self.global_rank}")


def predict_shares(out: Path, counts: list[int], processes: int) -> None:
    rows = [*open_rows(SAMPLE)]
    if os.environ.get("LOCAL_RANK", "0") == os.environ.get("OTHER"):
        rows.reverse()
    for count in counts:
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy="ddp" if processes > 1 else "auto",
            devices=processes,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[AttributionWriter(str(out / str(count)), max_heatmaps=0)],
        )
        data = CounterfactDataModule(rows[:count], batch_size=5, max_tokens=40)
        module = FailingModule(only=os.environ.get("ONLY", "all"))
        trainer.predict(module, datamodule=data, return_predictions=False)


if __name__ == "__main__":
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "2"))
    predict_shares(Path(sys.argv[1]), [int(count) for count in sys.argv[2:]], processes)
