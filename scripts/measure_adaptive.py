"""How often adaptive attribution keeps its promise, and at which cost: `python scripts/measure_adaptive.py`.

Computes all exact effects of random rows, once. Then, many times, random rows are the pilot and the others the
judges: an error model is fitted to the pilot as in a run, and its choice of cells is judged on the others. Two
tables in Markdown follow: promises kept, by rule; and, at the cost of the error model's choice, the cells with the
largest scores and cells drawn at random instead.

Axes: L layers, T tokens of one contrast, N cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jsonargparse import auto_cli
from measured_runs import draw_rows, folder_of_runs, predict, print_command, print_table
from numpy.typing import NDArray
from transformers import PreTrainedModel

from lit_attr.attribution.ablation import Ablation
from lit_attr.attribution.adaptive import depth_of, estimate_batch
from lit_attr.attribution.catalogue import AblationName, AblationOptions, RuleName, find_rule
from lit_attr.attribution.error_model import FORWARDS_A_GRADIENT, Estimate, Targets, costs_LT, fit
from lit_attr.attribution.gradient import Rule
from lit_attr.attribution.scoring import Scoring
from lit_attr.datamodule import DataRequirements
from lit_attr.evaluation.validity.agreement import pearson
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast, ContrastKey
from lit_attr.facts.sources import SAMPLE
from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer
from lit_attr.models.location import Location, locate
from lit_attr.sampling.ablations import SettledAblation

PROMISES = ((0.9, None), (0.95, None), (0.99, None), (0.95, 0.8))
# Beside the plain gradient: whether attention is held, and the name of the rule.
OTHER_RULES: tuple[tuple[bool, RuleName], ...] = ((True, "linearised"), (False, "norm-secant"))
HEADS = (
    "rule",
    "promise",
    "in each layer",
    "kept over all",
    "0.8 in each layer",
    "r",
    "worst layer",
    "estimated alone",
    "cost",
    "exact",
)

Values = NDArray[np.float64]
Known = tuple[Estimate, Values]


class Judged(NamedTuple):
    """One choice of cells, judged on contrasts that the error model has not seen.

    Attributes:
        r: Correlation over all cells.
        worst: In the layer where it is lowest.
        estimated: Over the estimated cells alone.
        cost: Passes of the gradient for each contrast, those of the estimates included.
        share: The share of exact cells.
    """

    r: float
    worst: float
    estimated: float
    cost: float
    share: float


def measure(
    models: list[str] | None = None,
    source: str = SAMPLE,
    rows: int = 200,
    seed: int = 0,
    pilot: int = 16,
    pilots: int = 20,
    ablation: AblationName = "zero",
    output_dir: str | None = None,
) -> None:
    """Prints the tables.

    Args:
        models: Hub names, folders or GGUF files. Default: the demo model.
        source: The facts, as in `lit-attr predict --data.source`.
        rows: Number of rows that are drawn at random.
        seed: Seed of the draw.
        pilot: Number of contrasts in a pilot.
        pilots: Number of random pilots.
        ablation: By what exact effects replace a write, and what scores subtract from it.
        output_dir: Where the exact effects are kept, and read by a later call. Default: nowhere.
    """
    drawn = draw_rows(source, rows, seed)
    for name in models or [DEMO_MODEL]:
        model, tokenizer = load_model(name), load_tokenizer(name)
        location = locate(model)
        with folder_of_runs(output_dir, name) as folder:
            run = predict(
                folder / "exact", drawn, rule="exact", ablation=ablation, model=model, tokenizer=tokenizer
            )
            effects = {
                (each.id, each.step): each.scores["mlp"].sum
                for _, batch in run.read_batches()
                for each in batch.examples
            }
            options = AblationOptions(mean_writes=str(run.mean_writes) if ablation == "mean" else None)
            replaced = SettledAblation(ablation, options).settle(model, location, trainer=None)
        depth = depth_of(model, location)
        data = drawn.data()
        data.make_contrasts(DataRequirements(tokenizer=tokenizer, ablation=ablation))
        contrasts = [each for each in data.contrasts if each.key in effects]
        print_command("measure_adaptive.py", name, source, rows, seed, ablation)
        plain = _known(model, location, contrasts, effects, find_rule(model, location, "gradient"), replaced)
        splits = [_split(plain, pilot, at) for at in range(pilots)]
        table = [_promise_row("gradient", splits, location.layers, depth, *promise) for promise in PROMISES]
        for held, rule_name in OTHER_RULES:
            rule = find_rule(model, location, rule_name, frozen_attention=held)
            others = _known(model, location, contrasts, effects, rule, replaced)
            label = f"{rule_name}, attention held" if held else rule_name
            other_splits = [_split(others, pilot, at) for at in range(pilots)]
            table.append(_promise_row(label, other_splits, location.layers, depth, *PROMISES[-1]))
        print_table(HEADS, table)
        _print_choices(splits, location.layers, depth)


def _known(
    model: PreTrainedModel,
    location: Location,
    contrasts: Sequence[Contrast],
    effects: Mapping[ContrastKey, Values],
    rule: Rule,
    ablation: Ablation,
) -> list[Known]:
    """What one pass knows of each contrast, and its exact effects."""
    found = []
    for contrast in contrasts:
        batch = collate_contrasts([contrast])
        scoring = Scoring(rule, ablation)
        replacement_BLTH = ablation.replacement_BLTH(model, location, batch)
        (estimate,) = estimate_batch(model, location, batch, scoring, replacement_BLTH).estimates
        found.append((estimate, effects[contrast.key]))
    return found


def _split(known: Sequence[Known], pilot: int, seed: int) -> tuple[list[Known], list[Known]]:
    order = np.random.default_rng(seed).permutation(len(known))
    return [known[at] for at in order[:pilot]], [known[at] for at in order[pilot:]]


def _promise_row(
    label: str,
    splits: Sequence[tuple[list[Known], list[Known]]],
    layers: Sequence[int],
    depth: int,
    overall: float,
    by_layer: float | None,
) -> list[str]:
    passes = 1 if label == "gradient" else 2
    found = []
    for pilot, judges in splits:
        model = fit(layers, depth, pilot, Targets(overall, by_layer))
        found.append(_judged(judges, layers, depth, [model.wants_LT(each) for each, _ in judges], passes))
    r, worst, estimated, cost, share = (np.array(values) for values in zip(*found, strict=True))
    count = len(found)
    return [
        f"`{label}`",
        str(overall),
        "-" if by_layer is None else str(by_layer),
        f"{(r >= overall).sum()} of {count}",
        f"{(worst >= 0.8).sum()} of {count}",
        f"{np.median(r):.3f} (at least {r.min():.3f})",
        f"{np.median(worst):.2f} (at least {worst.min():.2f})",
        f"{np.median(estimated):.2f}",
        f"{np.median(cost):.1f} (at most {cost.max():.1f})",
        f"{np.median(share):.0%}",
    ]


def _print_choices(splits: Sequence[tuple[list[Known], list[Known]]], layers: Sequence[int], depth: int) -> None:
    """The choice of the error model for a promise of 0.95, and two others at its cost."""
    found: dict[str, list[Judged]] = {"error model": [], "largest scores": [], "random cells": [], "no cell": []}
    for at, (pilot, judges) in enumerate(splits):
        model = fit(layers, depth, pilot, Targets(0.95))
        found["error model"].append(
            _judged(judges, layers, depth, [model.wants_LT(each) for each, _ in judges], 1)
        )
        budget = (found["error model"][-1].cost - 1) * FORWARDS_A_GRADIENT * len(judges)
        generator = np.random.default_rng(at)
        sizes = [np.abs(each.scores_LT) for each, _ in judges]
        noise = [generator.random(each.scores_LT.shape) for each, _ in judges]
        for name, ranks, spent in (
            ("largest scores", sizes, budget),
            ("random cells", noise, budget),
            ("no cell", noise, 0),
        ):
            chosen = _at_cost(ranks, [costs_LT(layers, depth, each.shape[1]) for each in ranks], spent)
            found[name].append(_judged(judges, layers, depth, chosen, 1))
    print_table(
        ("exact cells", "r", "worst layer", "cost", "share"),
        [
            [
                name,
                f"{np.median([each.r for each in several]):.3f}",
                f"{np.median([each.worst for each in several]):.2f}",
                f"{np.median([each.cost for each in several]):.1f}",
                f"{np.median([each.share for each in several]):.0%}",
            ]
            for name, several in found.items()
        ],
    )


def _at_cost(ranks: Sequence[Values], costs: Sequence[Values], budget: float) -> list[NDArray[np.bool_]]:
    """The cells of the highest rank whose exact effects cost no more than a budget together."""
    ranks_N, costs_N = (np.concatenate([each.ravel() for each in values]) for values in (ranks, costs))
    order_N = np.argsort(-ranks_N, kind="stable")
    chosen_N = np.zeros(len(ranks_N), dtype=np.bool_)
    chosen_N[order_N[np.cumsum(costs_N[order_N]) <= budget]] = True
    ends = np.cumsum([each.size for each in ranks])[:-1]
    return [part.reshape(each.shape) for part, each in zip(np.split(chosen_N, ends), ranks, strict=True)]


def _judged(
    judges: Sequence[Known],
    layers: Sequence[int],
    depth: int,
    chosen: Sequence[NDArray[np.bool_]],
    passes: int,
) -> Judged:
    mixed = [
        np.where(is_exact_LT, effects_LT, estimate.scores_LT)
        for is_exact_LT, (estimate, effects_LT) in zip(chosen, judges, strict=True)
    ]
    effects = [effects_LT for _, effects_LT in judges]
    cost = sum(costs_LT(layers, depth, is_exact_LT.shape[1])[is_exact_LT].sum() for is_exact_LT in chosen) / len(
        judges
    )
    by_layer = [
        _pearson([each[place] for each in mixed], [each[place] for each in effects])
        for place in range(len(layers))
    ]
    estimated = [
        [values_LT[~is_exact_LT] for values_LT, is_exact_LT in zip(values, chosen, strict=True)]
        for values in (mixed, effects)
    ]
    is_exact_N = np.concatenate([each.ravel() for each in chosen])
    return Judged(
        _pearson([each.ravel() for each in mixed], [each.ravel() for each in effects]),
        float(np.nanmin(by_layer)),
        _pearson(*estimated),
        passes + float(cost) / FORWARDS_A_GRADIENT,
        float(is_exact_N.mean()),
    )


def _pearson(one: Sequence[Values], other: Sequence[Values]) -> float:
    found = pearson(np.concatenate(one), np.concatenate(other))
    return np.nan if found is None else found


if __name__ == "__main__":
    auto_cli(measure, as_positional=False)
