"""Reading a run for figures: the means of each contrast by role, and the facts to draw.

Contrasts of a token with itself, as `step: all` can give, are left out, as in `summary.json`.

Shape suffixes: N contrasts, L layers, R roles (in the order of `MEAN_ROLES`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.errors import ArgumentError, UserError
from lit_attr.evaluation.profile import role_means
from lit_attr.records.files import read_json
from lit_attr.records.reading import load_attributions
from lit_attr.views.paper.style import fit
from lit_attr.views.pictures import choose_component

CONFIDENCE = 0.95


class Run(NamedTuple):
    """What the figures over all contrasts of a run need.

    Attributes:
        folder: The run's output folder.
        model: The model's name without its owner.
        title: Model and component, drawable.
        component: The component whose scores are drawn.
        quantity: What the scores are: exact effects, or estimates of them.
        layers_L: True layer indices.
        means_NLR: Each contrast's mean scores over the tokens of a role, in logits; NaN where there are none.
        facts_N: The number of each contrast's fact; a fact may have several contrasts.
        known_N: Whether the true token is the most likely one.
        relations_N: Relation ids, or empty texts.
        prompts: A prompt of each relation, with … for its subject.
    """

    folder: Path
    model: str
    title: str
    component: str
    quantity: str
    layers_L: NDArray[np.int64]
    means_NLR: NDArray[np.float32]
    facts_N: NDArray[np.int64]
    known_N: NDArray[np.bool_]
    relations_N: NDArray[np.object_]
    prompts: dict[str, str]

    def only_known(self) -> Run:
        """The run with the contrasts of known facts only.

        Raises:
            ArgumentError: No fact is known.
        """
        if not self.known_N.any():
            raise ArgumentError("known", f"{self.folder} has no known fact; leave --known out")
        return self.only(self.known_N)

    def only(self, chosen_N: NDArray[np.bool_]) -> Run:
        """The run with the chosen contrasts only."""
        return self._replace(
            means_NLR=self.means_NLR[chosen_N],
            facts_N=self.facts_N[chosen_N],
            known_N=self.known_N[chosen_N],
            relations_N=self.relations_N[chosen_N],
        )


class Estimate(NamedTuple):
    """Means over contrasts.

    Attributes:
        mean_LR: Mean scores in logits; NaN where no contrast has the role.
        half_LR: Half the widths of their confidence intervals; NaN where fewer than two facts have the role.
        count_R: How many contrasts have the role.
    """

    mean_LR: NDArray[np.float64]
    half_LR: NDArray[np.float64]
    count_R: NDArray[np.int64]


def read_run(folder: Path) -> Run:
    """Reads a run, with one batch file in memory at a time.

    Raises:
        UserError: The folder is not an output folder, or has no contrast of two different tokens.
    """
    means, facts, known, relations = [], [], [], []
    prompts: dict[str, str] = {}
    numbers: dict[int | str, int] = {}
    component: str | None = None
    for record in _contrasts_of(folder):
        component = choose_component(record, component)
        # The summary has the means over all contrasts; relations and windows need those of each.
        means_LR, has_role_R = role_means(
            record["scores"][component]["sum"], record["roles"], record["subject_span"]
        )
        means.append(np.where(has_role_R, means_LR, np.nan).astype(np.float32))
        facts.append(numbers.setdefault(record["id"], len(numbers)))
        known.append(record["rank_true"] == 0)
        relations.append(record["relation_id"])
        if record["relation_id"] not in prompts:
            prompts[record["relation_id"]] = record["prompt"].replace(record["subject"], "…")
    if component is None:
        raise UserError(f"{folder}: there is no contrast of two different tokens in it; give another folder")
    model = Path(read_json(folder / "manifest.json").get("model", {}).get("model_name") or "model").name
    return Run(
        folder,
        model,
        fit(f"{model} {component}", "run"),
        component,
        "exact effect" if record["rule"] == "exact" else "score (estimate)",
        np.array(record["layers"]),
        np.stack(means),
        np.array(facts),
        np.array(known),
        # As objects: an array of texts has the room of the longest one for each.
        np.array(relations, dtype=object),
        prompts,
    )


def pick_facts(run: Run, count: int, ids: Sequence[str], *, known: bool) -> list[dict[str, Any]]:
    """The records to draw: evenly spread over the run, the shortest first, or those of the ids, in their order.

    Args:
        run: The run.
        count: How many records, where no ids are given.
        ids: The ids of facts.
        known: Whether to spread over known facts only.

    Raises:
        ArgumentError: The run has no contrast of one of the ids.
    """
    if ids:
        found = [record for record in _contrasts_of(run.folder) if str(record["id"]) in ids]
        if missing := set(ids) - {str(record["id"]) for record in found}:
            raise ArgumentError("ids", f"{run.folder} has no contrast of {', '.join(sorted(missing))}")
        return sorted(found, key=lambda record: (ids.index(str(record["id"])), record["step"]))
    eligible = np.flatnonzero(run.known_N) if known else np.arange(len(run.known_N))
    spread = np.linspace(0, len(eligible) - 1, min(count, len(eligible))).round().astype(int)
    chosen = set(eligible[spread].tolist())
    records = [record for place, record in enumerate(_contrasts_of(run.folder)) if place in chosen]
    return sorted(records, key=lambda record: len(record["tokens"]))


def estimate(values_NLR: NDArray[np.floating], facts_N: NDArray[np.int64]) -> Estimate:
    """Means and confidence intervals of each layer and role, over the contrasts that have the role.

    The intervals are clustered by fact, as the standard errors of :meth:`ProfileSums.compute` are.

    Args:
        values_NLR: The contrasts' values; NaN where a contrast has no such role.
        facts_N: The number of each contrast's fact.
    """
    has_role_NR = ~np.isnan(values_NLR[:, 0])
    count_R = has_role_NR.sum(0)
    _, places_N = np.unique(facts_N, return_inverse=True)
    has_role_FR = np.zeros((places_N.max(initial=-1) + 1, len(count_R)), dtype=np.bool_)
    np.logical_or.at(has_role_FR, places_N, has_role_NR)
    facts_R = has_role_FR.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_LR = np.nansum(values_NLR, 0, dtype=np.float64) / count_R
        # The sum over a fact's contrasts of their deviations from the mean.
        deviations_FLR = np.zeros((len(has_role_FR), *mean_LR.shape))
        np.add.at(deviations_FLR, places_N, np.nan_to_num(values_NLR - mean_LR))
        error_LR = np.sqrt(facts_R / (facts_R - 1) * (deviations_FLR**2).sum(0)) / count_R
    quantile = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return Estimate(mean_LR, quantile * np.where(facts_R > 1, error_LR, np.nan), count_R)


def _contrasts_of(folder: Path) -> Iterator[dict[str, Any]]:
    for record in load_attributions(folder):
        if record["true_token_id"] != record["false_token_id"]:
            yield record
