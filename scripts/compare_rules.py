"""Compares the rules with exact effects on models: `python scripts/compare_rules.py [--models MODEL ...]`.

Draws random rows, scores them with each rule, and prints for each model a table in Markdown of the agreement with
the exact effects of an ablation, which are computed once. `integrated`, of steps × layers backward passes, is
compared over the first of the rows; a second table has all rules over these.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import auto_cli
from measured_runs import Drawn, draw_rows, file_name, folder_of_runs, predict, print_command, print_table

from lit_attr.attribution.catalogue import AblationName, RuleName, RuleOptions
from lit_attr.evaluation.validity.agreement import Compared, agreement_report
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.sources import SAMPLE
from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import Example


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
)
# Of how many contrasts the rounding noise of exact effects is measured.
RESOLVED = 8
HEADS = ("rule", "backwards", "r (95% interval)", "without position 0", "median layer", "worst layer", "same sign")

Examples = Mapping[ContrastKey, Example]


def compare(
    models: list[str] | None = None,
    source: str = SAMPLE,
    rows: int = 200,
    seed: int = 0,
    integrated_rows: int = 32,
    ablation: AblationName = "zero",
    output_dir: str | None = None,
) -> None:
    """Prints the tables.

    Args:
        models: Hub names, folders or GGUF files. Default: the demo model.
        source: The facts, as in `lit-attr predict --data.source`.
        rows: Number of rows that are drawn at random.
        seed: Seed of the draw.
        integrated_rows: Number of the drawn rows that the rule `integrated` scores; 0 leaves it out.
        ablation: By what exact effects replace a write, and what scores subtract from it.
        output_dir: Where the runs are kept, and continued by a later call. Default: nowhere.
    """
    drawn = draw_rows(source, rows, seed)
    for name in models or [DEMO_MODEL]:
        settings = {"model": load_model(name), "tokenizer": load_tokenizer(name), "ablation": ablation}
        with folder_of_runs(output_dir, name) as folder:
            effects, layers = _run(folder / "exact", drawn, rule="exact", **settings)
            resolution = _resolution(
                predict(folder / "resolution", drawn.first(RESOLVED), verify=RESOLVED, **settings)
            )
            scores = {
                variant: _run(
                    folder / file_name(variant.label),
                    drawn.first(integrated_rows) if variant.rule == "integrated" else drawn,
                    rule=variant.rule,
                    rule_options=variant.options,
                    **settings,
                )[0]
                for variant in RULES
                if integrated_rows or variant.rule != "integrated"
            }
        print_command("compare_rules.py", name, source, rows, seed, ablation)
        # Where the rules have scored different rows, those that all have scored get a table of their own.
        fewest = min(scores.values(), key=len)
        for contrasts in {len(effects): effects, len(fewest): fewest}.values():
            complete = {each: found for each, found in scores.items() if contrasts.keys() <= found.keys()}
            print(f"{len(contrasts)} contrasts:\n")
            print_table(
                HEADS, [_row(each, layers, complete[each], effects, contrasts, resolution) for each in complete]
            )


def _run(folder: Path, drawn: Drawn, **settings: Any) -> tuple[Examples, Sequence[int]]:
    """The examples of a run by key, and its layers. Says on standard error how long the run took."""
    started = time.perf_counter()
    run = predict(folder, drawn, **settings)
    print(f"{folder.name}: {len(drawn.rows)} rows in {time.perf_counter() - started:.0f} seconds", file=sys.stderr)
    examples = {
        (example.id, example.step): example for _, batch in run.read_batches() for example in batch.examples
    }
    return examples, run.read_manifest()["model"]["layers"]


def _resolution(run: RunFolder) -> float:
    """Below which size effects are rounding noise, by a run with exact effects beside its scores."""
    return math.sqrt(statistics.fmean(record.resolution**2 for _, record in run.read_exact()))


def _row(
    variant: Variant,
    layers: Sequence[int],
    scores: Examples,
    effects: Examples,
    contrasts: Examples,
    resolution: float,
) -> list[str]:
    """The cells of a rule's row: its agreement with the effects over some contrasts."""
    compared = [
        Compared(_sums(scores[key]), _sums(effects[key]), example.roles, example.subject_span, example.id)
        for key, example in contrasts.items()
    ]
    report = agreement_report(layers, compared, resolution)
    by_layer = {
        layer: part["pearson"] for layer, part in report["by_layer"].items() if part["pearson"] is not None
    }
    worst = min(by_layer, key=lambda layer: by_layer[layer])
    return [
        f"`{variant.label}`",
        variant.backwards,
        _with_interval(report),
        _with_interval(report["without_position_0"]),
        f"{statistics.median(by_layer.values()):.2f}",
        f"{by_layer[worst]:.2f} (layer {worst})",
        f"{report['same_sign']:.2f}",
    ]


def _with_interval(part: Mapping[str, Any]) -> str:
    interval = part["intervals"]["pearson"]
    # With a few facts there is none.
    ends = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return f"{part['pearson']:.2f}{ends}"


def _sums(example: Example) -> Any:
    (scores,) = example.scores.values()
    return scores.sum


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
