"""Compares the rules with exact effects on a model: `python scripts/compare_rules.py [--models MODEL ...]`.

Runs a prediction with each rule, with exact effects for some facts (`model.verify`), and prints a table
in Markdown: Pearson's correlation of scores and effects over all layers and tokens, and in each layer. For several
models a second table has the correlation over all cells and in the worst layer of each.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from jsonargparse import auto_cli
from transformers import PreTrainedModel

from lit_attr import AttributionModule, AttributionWriter, CounterfactDataModule
from lit_attr.attribution.catalogue import RuleName
from lit_attr.facts.sources import SAMPLE
from lit_attr.models.loading import DEMO_MODEL, load_model
from lit_attr.settings import RuleOptions


class Variant(NamedTuple):
    """A rule with its options.

    Attributes:
        label: Its name in the tables.
        rule: The rule.
        options: Its options.
        backwards: The number of backward passes for each batch, in a model of L layers.
    """

    label: str
    rule: RuleName
    options: RuleOptions
    backwards: str


RULES = (
    Variant("gradient", "gradient", RuleOptions(), "1"),
    Variant("frozen-norm", "frozen-norm", RuleOptions(), "1"),
    Variant("linearised", "linearised", RuleOptions(), "1"),
    Variant("linearised, frozen_attention True", "linearised", RuleOptions(frozen_attention=True), "1"),
    Variant("norm-secant", "norm-secant", RuleOptions(), "1"),
    Variant("integrated, integration_steps 8", "integrated", RuleOptions(integration_steps=8), "8 L"),
    Variant("exact", "exact", RuleOptions(), "none"),
)


def compare(
    models: list[str] | None = None, source: str = SAMPLE, verify: int = 64, component: str = "mlp"
) -> None:
    """Prints the tables.

    Args:
        models: Names or folders. Default: the demo model.
        source: The facts, as in `lit-attr predict --data.source`.
        verify: Number of facts whose scores are compared with their exact effects.
        component: The component that is scored.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    named = {"demo" if model == DEMO_MODEL else model: model for model in models or [DEMO_MODEL]}
    all_and_worst: dict[str, list[str]] = {}
    for name, path in named.items():
        model = load_model(path)
        rows: dict[str, list[str]] = {}
        times = []
        layers: list[str] = []
        for label, rule, options, backwards in RULES:
            settings = {"component": component, "rule": rule, "rule_options": options, "tokenizer": path}
            agreement, seconds = _agreement(model, settings, source, verify)
            # Exact scores are not compared with themselves.
            cells = [1.0] * (1 + len(layers))
            if agreement is not None:
                layers = [*agreement["by_layer"]]
                found = [agreement["pearson"], *(agreement["by_layer"][layer]["pearson"] for layer in layers)]
                cells = [math.nan if cell is None else cell for cell in found]
            rows[label] = [backwards, *(f"{cell:.2f}" for cell in cells)]
            all_and_worst.setdefault(label, []).append(f"{cells[0]:.2f} / {min(cells[1:]):.2f}")
            times.append(f"{label} {seconds:.1f}")
        print(f"\n{name}: {verify} contrasts compared\n")
        _print_table(["rule", "backwards", "all cells", *(f"layer {layer}" for layer in layers)], rows)
        print(f"\nSeconds for all facts, without the comparison: {', '.join(times)}")
    if len(named) > 1:
        print("\nAll cells / worst layer\n")
        _print_table(["rule", *named], all_and_worst)


def _print_table(heads: list[str], rows: Mapping[str, Sequence[str]]) -> None:
    cells = [heads, ["---"] * len(heads), *([f"`{name}`", *row] for name, row in rows.items())]
    print("\n".join(f"| {' | '.join(row)} |" for row in cells))


def _agreement(
    model: PreTrainedModel, settings: dict[str, Any], source: str, verify: int
) -> tuple[dict[str, Any] | None, float]:
    """The agreement with exact effects (None for the rule `exact`), and the seconds of a run without it."""
    data = CounterfactDataModule(source)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for count in (verify, 0):
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=1,
                logger=False,
                callbacks=[AttributionWriter(str(Path(folder) / str(count)), max_heatmaps=0)],
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            module = AttributionModule(model=model, verify=count, **settings)
            started = time.perf_counter()
            trainer.predict(module, datamodule=data, return_predictions=False)
            seconds = time.perf_counter() - started
        summary = json.loads((Path(folder) / str(verify) / "summary.json").read_bytes())
    return summary["agreement"], seconds


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
