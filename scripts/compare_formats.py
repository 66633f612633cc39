"""Compares the number formats of a model's weights: `python scripts/compare_formats.py [--models MODEL ...]`.

Draws random rows, scores them with gradient × activation in float32 and in each format, and prints for each model
a table in Markdown of the agreement of each format's scores and answers with those of float32.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from measured_runs import Drawn, draw_rows, file_name, folder_of_runs, predict, print_command, print_table

from lit_attr.errors import UserError
from lit_attr.evaluation.run_comparison import compare_runs
from lit_attr.facts.sources import SAMPLE
from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer
from lit_attr.records.folder import RunFolder
from lit_attr.records.rejected import read_refused
from lit_attr.settings import LoadingOptions

REFERENCE = "float32"
FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "8-bit, bfloat16": {"quantization": "8bit", "dtype": "bfloat16"},
    "8-bit, float32, threshold 0": {
        "quantization": "8bit",
        "loading": LoadingOptions(llm_int8_threshold=0),
    },
    "4-bit (NF4)": {"quantization": "4bit"},
}
HEADS = ("format", "Pearson", "worst layer", "norm ratio", "preferred changed", "known changed", "refused")


def compare(
    models: list[str] | None = None,
    source: str = SAMPLE,
    rows: int = 200,
    seed: int = 0,
    output_dir: str | None = None,
) -> None:
    """Prints the tables.

    Args:
        models: Hub names, folders or GGUF files. Default: the demo model.
        source: The facts, as in `lit-attr predict --data.source`.
        rows: Number of rows that are drawn at random.
        seed: Seed of the draw.
        output_dir: Where the runs are kept, and continued by a later call. Default: nowhere.
    """
    drawn = draw_rows(source, rows, seed)
    for name in models or [DEMO_MODEL]:
        with folder_of_runs(output_dir, name) as folder:
            loadable = _loadable(name, folder / "model")
            reference = _run(folder / REFERENCE, drawn, model_name=loadable)
            table = []
            for label, settings in FORMATS.items():
                try:
                    run = _run(folder / file_name(label), drawn, model_name=loadable, **settings)
                except UserError as error:
                    # Numbers that are not finite, in all that a model computes.
                    print(f"{label}: {error}", file=sys.stderr)
                    table.append([label, *["-"] * (len(HEADS) - 2), "all"])
                else:
                    table.append(_row(label, reference, run))
        print_command("compare_formats.py", name, source, rows, seed)
        print_table(HEADS, table)


def _run(folder: Path, drawn: Drawn, **settings: Any) -> RunFolder:
    """Runs a prediction, and says on standard error how long it took."""
    started = time.perf_counter()
    run = predict(folder, drawn, **settings)
    print(f"{folder.name}: {time.perf_counter() - started:.0f} seconds", file=sys.stderr)
    return run


def _loadable(name: str, folder: Path) -> str:
    """A model's name; of a GGUF file, whose weights take no quantisation, a folder with the same weights."""
    if not name.lower().endswith(".gguf"):
        return name
    if not folder.exists():
        load_model(name).save_pretrained(folder)
        load_tokenizer(name).save_pretrained(folder)
    return str(folder)


def _row(label: str, reference: RunFolder, run: RunFolder) -> list[str]:
    """The cells of a format's row. A contrast with a number that is not finite is refused."""
    refused = str(len(read_refused(run.rejected)))
    if not any(run.batches.iterdir()):
        return [label, *["-"] * (len(HEADS) - 2), refused]
    found: Mapping[str, Any] = compare_runs(reference.path, run.path)
    worst = min(
        (part["pearson"], layer) for layer, part in found["by_layer"].items() if part["pearson"] is not None
    )
    answers = found["answers"]
    return [
        label,
        f"{found['all']['pearson']:.3f}",
        f"{worst[0]:.3f} (layer {worst[1]})",
        f"{found['all']['norm_ratio']:.3f}",
        str(answers["preferred_changed"]),
        str(answers["known_changed"]),
        refused,
    ]


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
