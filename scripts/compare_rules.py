"""Which rule to trust on a model: `python scripts/compare_rules.py [--models MODEL ...]`.

Runs the prediction once with each rule, each comparing the scores of some facts with their exact effects
(`writer.verify`), and prints a table in Markdown: Pearson's correlation over all layers and tokens, and in each
layer. For several models there is one more table, with the whole and the worst layer of each.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import auto_cli

from lit_attr import AttributionModule, AttributionWriter, CounterfactDataModule
from lit_attr.facts.sources import SAMPLE
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.records.encoding import read_json

# Each with the options it is tried with, and how many backward passes a batch it takes in a model of L layers.
RULES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"rule": "gradient"}, "1"),
    ({"rule": "frozen-norm"}, "1"),
    ({"rule": "linearised"}, "1"),
    ({"rule": "linearised", "frozen_attention": True}, "1"),
    ({"rule": "norm-secant"}, "1"),
    ({"rule": "integrated", "integration_steps": 8}, "8 L"),
    ({"rule": "exact"}, "none"),
)


def compare(
    models: list[str] | None = None, source: str = SAMPLE, verify: int = 64, component: str = "mlp"
) -> None:
    """Prints the tables.

    Args:
        models: Names or folders. Default: the demo model.
        source: The facts, as `lit-attr predict --data.source` takes them.
        verify: How many facts are compared with their exact effects.
        component: What is scored.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    named = {"demo" if model == DEMO_MODEL else model: model for model in models or [DEMO_MODEL]}
    whole_and_worst: dict[str, list[str]] = {}
    for name, model in named.items():
        rows: dict[str, list[str]] = {}
        times = []
        layers: list[str] = []
        for options, backwards in RULES:
            module = AttributionModule(model, component=component, **options)
            with tempfile.TemporaryDirectory() as folder:
                trust, seconds = _trust(module, source, verify, Path(folder))
            # What is exact is not compared with itself.
            cells = [1.0] * (1 + len(layers))
            if trust is not None:
                layers = [*trust["by_layer"]]
                found = [trust["pearson"], *(trust["by_layer"][layer]["pearson"] for layer in layers)]
                cells = [math.nan if cell is None else cell for cell in found]
            rule = ", ".join((options["rule"], *(f"{key} {value}" for key, value in [*options.items()][1:])))
            rows[rule] = [backwards, *(f"{cell:.2f}" for cell in cells)]
            whole_and_worst.setdefault(rule, []).append(f"{cells[0]:.2f} / {min(cells[1:]):.2f}")
            times.append(f"{rule} {seconds:.1f}")
        print(f"\n{name}: {verify} contrasts compared\n")
        _print_table(["rule", "backwards", "all cells", *(f"layer {layer}" for layer in layers)], rows)
        print(f"\nSeconds for all facts, without the comparison: {', '.join(times)}")
    if len(named) > 1:
        print("\nAll cells / worst layer\n")
        _print_table(["rule", *named], whole_and_worst)


def _print_table(heads: list[str], rows: Mapping[str, Sequence[str]]) -> None:
    cells = [heads, ["---"] * len(heads), *([f"`{name}`", *row] for name, row in rows.items())]
    print("\n".join(f"| {' | '.join(row)} |" for row in cells))


def _trust(
    module: AttributionModule, source: str, verify: int, folder: Path
) -> tuple[dict[str, Any] | None, float]:
    """A run's report, where there is one, and how long the run took without the comparison."""
    data = CounterfactDataModule(source)
    seconds = []
    for count in (verify, 0):
        writer = AttributionWriter(str(folder / str(count)), verify=count, max_heatmaps=0)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[writer],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        started = time.perf_counter()
        trainer.predict(module, datamodule=data, return_predictions=False)
        seconds.append(time.perf_counter() - started)
    return read_json(folder / str(verify) / "summary.json").get("trust"), seconds[-1]


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
