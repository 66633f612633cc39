"""The comparison of two runs over the same contrasts: of number formats, checkpoints, rules or fine-tunes.

Axes: L layers that both runs have, T tokens of one contrast, N cells (a layer at a token).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.errors import ArgumentError, UserError
from lit_attr.evaluation.validity.agreement import pearson
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.records.folder import RunFolder
from lit_attr.text import counted

# How many contrasts whose answer has changed are listed.
LISTED = 10


class _Answer(NamedTuple):
    """What a run says of a contrast: the scores of the common layers, and the two answers."""

    scores_LT: NDArray[np.float64]
    tokens: tuple[str, ...]
    prompt: str
    logit_diff: float
    is_known: bool


def compare_runs(first: str | Path, second: str | Path, *, component: str | None = None) -> dict[str, Any]:
    """Compares the signed scores and the answers of two runs, contrast by contrast.

    Contrasts are matched by id and step. Those that only one run has, or whose tokens differ, are counted and left
    out. The second run is compared with the first, which is the reference of relative numbers.

    Args:
        first: Output folder of the run that is the reference.
        second: Output folder of the other run.
        component: The component whose scores are compared. Default: the first that the first run has; of a second
            run without it, its own first.

    Returns:
        In JSON types: the `components` of the two runs, `contrasts` compared, and `left_out` by reason; over `all`
        cells and `by_layer`, `pearson`, `norm_ratio` (the norm of the second run's scores over that of the
        first's), and `largest_error` (the largest difference relative to the contrast's largest score in the first
        run); `answers` with the mean absolute change of the logit difference, in logits, the counts of contrasts
        whose preferred answer or known answer changed, and the clearest of the former. A number is None where
        there are too few cells for it.

    Raises:
        ArgumentError: A run has no scores of the component.
        UserError: The runs have no layer or no contrast in common, or one of the folders is not a run's.
    """
    runs = [RunFolder(folder) for folder in (first, second)]
    layers = _common_layers(runs)
    components = _chosen_components(runs, component)
    reference = dict(_answers(runs[0], layers, components[0]))
    pairs: list[tuple[ContrastKey, _Answer, _Answer]] = []
    only_second = other_tokens = 0
    for key, answer in _answers(runs[1], layers, components[1]):
        expected = reference.pop(key, None)
        if expected is None:
            only_second += 1
        elif expected.tokens != answer.tokens:
            other_tokens += 1
        else:
            pairs.append((key, expected, answer))
    if not pairs:
        raise UserError(f"{second}: it has no contrast in common with {first}; give runs of the same facts")
    by_layer = {
        str(layer): _of_cells(
            [(old.scores_LT[at : at + 1], new.scores_LT[at : at + 1]) for _, old, new in pairs], pairs
        )
        for at, layer in enumerate(layers)
    }
    return {
        "components": components,
        "contrasts": len(pairs),
        "left_out": {"only_first": len(reference), "only_second": only_second, "other_tokens": other_tokens},
        "all": _of_cells([(old.scores_LT, new.scores_LT) for _, old, new in pairs], pairs),
        "by_layer": by_layer,
        "answers": _of_answers(pairs),
    }


def comparison_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A comparison of two runs as lines of Markdown: a table by layer, and the answers that changed.

    Args:
        found: What :func:`compare_runs` returns.
    """
    left_out = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found["left_out"].items() if count)
    scored = " and ".join(dict.fromkeys(found["components"]))
    yield f"{counted(found['contrasts'], 'contrast')} compared, scores of {scored}" + (
        f"; left out: {left_out}" if left_out else ""
    )
    yield ""
    yield "| layer | Pearson | norm ratio | largest error |"
    yield "| --- | --- | --- | --- |"
    for name, row in (("all", found["all"]), *found["by_layer"].items()):
        yield f"| {name} | {_shown(row['pearson'], '.4f')} | {_shown(row['norm_ratio'], '.3f')} | " + (
            f"{_shown(row['largest_error'], '.1%')} |"
        )
    answers = found["answers"]
    yield ""
    yield (
        f"logit difference changed by {answers['mean_change']:.3f} on average; preferred answer changed in "
        f"{answers['preferred_changed']}, known answer in {answers['known_changed']} contrasts"
    )
    for each in answers["clearest"]:
        change = f"{each['first']:+.2f} to {each['second']:+.2f}"
        yield f"- id {each['id']!r}, step {each['step']}: {change}: {each['prompt'][:100]!r}"


def _common_layers(runs: Sequence[RunFolder]) -> list[int]:
    for run in runs:
        run.read_manifest()
    # All files of a run have the same layers.
    first, second = (next((batch.layers for _, batch in run.read_batches()), []) for run in runs)
    common = [layer for layer in first if layer in set(second)]
    if not common:
        raise UserError(
            f"{runs[1].path}: it has no layer in common with {runs[0].path}; give runs of the same layers"
        )
    return common


def _chosen_components(runs: Sequence[RunFolder], component: str | None) -> list[str]:
    # All files of a run have the same components.
    names = [[*next(run.read_batches())[1].examples[0].scores] for run in runs]
    if component is None:
        first = names[0][0]
        return [first, first if first in names[1] else names[1][0]]
    for run, found in zip(runs, names, strict=True):
        if component not in found:
            raise ArgumentError(
                "component", f"{run.path} has scores of {', '.join(found)}; name one that both runs have"
            )
    return [component, component]


def _answers(run: RunFolder, layers: Sequence[int], component: str) -> Iterator[tuple[ContrastKey, _Answer]]:
    for _, batch in run.read_batches():
        rows = [batch.layers.index(layer) for layer in layers]
        for example in batch.examples:
            if example.true_token_id == example.false_token_id:
                continue
            scores_LT = example.scores[component].sum[rows]
            yield (
                (example.id, example.step),
                _Answer(
                    scores_LT, tuple(example.tokens), example.prompt, example.logit_diff, example.rank_true == 0
                ),
            )


def _of_cells(
    cells: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    pairs: Sequence[tuple[ContrastKey, _Answer, _Answer]],
) -> dict[str, float | None]:
    old_N = np.concatenate([old_LT.ravel() for old_LT, _ in cells])
    new_N = np.concatenate([new_LT.ravel() for _, new_LT in cells])
    norm = float(np.linalg.norm(old_N))
    largest = [np.abs(old.scores_LT).max() for _, old, _ in pairs]
    errors = [
        float(np.abs(new_LT - old_LT).max() / size)
        for (old_LT, new_LT), size in zip(cells, largest, strict=True)
        if size > 0
    ]
    return {
        "pearson": pearson(old_N, new_N),
        "norm_ratio": float(np.linalg.norm(new_N)) / norm if norm else None,
        "largest_error": max(errors, default=None),
    }


def _of_answers(pairs: Sequence[tuple[ContrastKey, _Answer, _Answer]]) -> dict[str, Any]:
    changed = [pair for pair in pairs if (pair[1].logit_diff > 0) != (pair[2].logit_diff > 0)]
    clearest = sorted(changed, key=lambda pair: -abs(pair[2].logit_diff - pair[1].logit_diff))[:LISTED]
    return {
        "mean_change": float(np.mean([abs(new.logit_diff - old.logit_diff) for _, old, new in pairs])),
        "preferred_changed": len(changed),
        "known_changed": sum(old.is_known != new.is_known for _, old, new in pairs),
        "clearest": [
            {
                "id": contrast_id,
                "step": step,
                "prompt": old.prompt,
                "first": old.logit_diff,
                "second": new.logit_diff,
            }
            for (contrast_id, step), old, new in clearest
        ],
    }


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
