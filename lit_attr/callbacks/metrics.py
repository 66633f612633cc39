"""Counts of what has been attributed so far, for displays that are updated while a Trainer runs.

Axes: L layers, R roles, N numbers that processes add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from lit_attr.evaluation.answers import AnswerCounts
from lit_attr.evaluation.profile import ProfileSums
from lit_attr.evaluation.summary import OTHERS
from lit_attr.records.schema import BatchRecord


class SharedSum(Metric):
    """A vector of numbers that processes add up.

    Args:
        size: The length of the vector.
    """

    full_state_update = False
    total_N: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.add_state("total_N", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values_N: Tensor) -> None:
        """Adds a vector."""
        self.total_N += values_N.to(self.total_N)

    def compute(self) -> Tensor:
        """The sum over all updates of all processes."""
        return self.total_N


class LiveCounts:
    """Answers and role × layer means of the contrasts that this process has attributed so far.

    A contrast whose two tokens are the same, as `step: all` can give, is left out. Every contrast counts as a
    fact of its own; with `step: all`, the summary alone gathers the contrasts of a fact from all files.

    Args:
        layers: The layers of the scores.
        components: The components that have scores.
        rule: The rule that computed them.
    """

    def __init__(self, layers: Sequence[int], components: Sequence[str], rule: str) -> None:
        self._shape = layers, components, rule
        self.answers = AnswerCounts()
        self.profiles, self.known_profiles = (
            [ProfileSums(layers, component, rule) for component in components] for _ in range(2)
        )
        self.logit_diff = 0.0

    def add(self, record: BatchRecord) -> None:
        """Adds the contrasts of a batch."""
        for example in record.examples:
            if example.true_token_id == example.false_token_id:
                continue
            self.answers.add(example.logit_diff, example.rank_true)
            self.logit_diff += example.logit_diff
            for profile in self.profiles if example.rank_true else self._profiles():
                scores_LT = example.scores[profile.component].sum
                profile.add(scores_LT, example.roles, example.subject_span)

    def compute(self) -> dict[str, Any]:
        """The counts in the form of the run's summary, with the mean logit difference as `mean_logit_diff`."""
        found = self.answers.compute()
        first, *others = (
            {"profile": profile.compute(), "known_profile": known.compute()}
            for profile, known in zip(self.profiles, self.known_profiles, strict=True)
        )
        return {
            **found,
            "mean_logit_diff": self.logit_diff / found["contrasts"] if found["contrasts"] else None,
            **first,
            **({OTHERS: {each["profile"]["component"]: each for each in others}} if others else {}),
        }

    def reduce(self, device: torch.device) -> LiveCounts:
        """The counts of all processes together. Every process has to call it.

        Args:
            device: The device on which processes exchange numbers.
        """
        parts = self._parts()
        flat_N = np.concatenate([part.ravel() for part in parts])
        shared = SharedSum(len(flat_N)).to(device)
        shared.update(torch.from_numpy(flat_N))
        summed_N = shared.compute().cpu().numpy()
        ends = np.cumsum([part.size for part in parts])[:-1]
        total = LiveCounts(*self._shape)
        total._set(
            [values.reshape(part.shape) for values, part in zip(np.split(summed_N, ends), parts, strict=True)]
        )
        return total

    def _parts(self) -> list[NDArray[np.float64]]:
        answers = self.answers
        counts = np.array([answers.total, answers.preferred, answers.known, self.logit_diff])
        arrays = [array for each in self._profiles() for array in (each.sums_3LR, each.counts_3R)]
        return [counts, *(array.astype(np.float64) for array in arrays)]

    def _set(self, parts: Sequence[NDArray[np.float64]]) -> None:
        counts, *arrays = parts
        self.answers.total, self.answers.preferred, self.answers.known = map(int, counts[:3])
        self.logit_diff = float(counts[3])
        for profile, sums_3LR, counts_3R in zip(self._profiles(), arrays[::2], arrays[1::2], strict=True):
            profile.sums_3LR, profile.counts_3R = sums_3LR, counts_3R.astype(np.int64)

    def _profiles(self) -> list[ProfileSums]:
        return self.profiles + self.known_profiles
