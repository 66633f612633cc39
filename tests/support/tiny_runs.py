"""Run folders of one batch file with hand-made examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed import write_batch, write_manifest

from lit_attr.facts.roles import MEAN_ROLES

START, LAST = MEAN_ROLES.index("position 0"), MEAN_ROLES.index("last")
# The factor of a 95% confidence interval.
QUANTILE = 1.959964


def write_run(path: Path, examples: Sequence[Mapping[str, Any]], *, layers: int = 2, model: str = "tiny") -> Path:
    """Writes a run folder with these examples of scores of layers 0, 1 and so on, and returns its path."""
    (path / "batches").mkdir(parents=True)
    write_manifest(path, model={"model_name": model})
    if examples:
        head = {"format": "lit-attr/attributions", "version": 2, "rule": "gradient", "layers": [*range(layers)]}
        write_batch(path, {**head, "examples": examples})
    return path


def example(identity: int | str, scores_LT: Sequence[Sequence[float]], **other: Any) -> dict[str, Any]:
    """An example with the four tokens `A B is in`, of which the first two are the subject."""
    numbers = ("logit_true", "logit_false", "logit_diff", "prob_true", "prob_false", "rank_true")
    return {
        "id": identity,
        "relation_id": "P17",
        "prompt": "A B is in",
        "subject": "A B",
        "target_true": " X",
        "target_false": " Y",
        "step": 0,
        "tokens": ["A", " B", " is", " in"],
        "roles": ["first subject", "last subject", "first subsequent", "last"],
        "subject_span": [0, 2],
        "true_token": " X",
        "false_token": " Y",
        "true_token_id": 1,
        "false_token_id": 2,
        **dict.fromkeys(numbers, 0),
        "scores": {"mlp": {"sum": scores_LT, "l2": scores_LT}},
        **other,
    }


ONE = example("one", [[10, 1, 2, 4], [20, 3, 0, 8]])
TWO = example("two", [[-5, 2, 0, 6], [-1, 1, 0, -4]], rank_true=3, relation_id="P36")
# A contrast of a token with itself.
SAME = example("same", [[9, 9, 9, 9], [9, 9, 9, 9]], false_token_id=1)
