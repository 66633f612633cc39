"""How often the model prefers the true answer, and how often it knows it."""

from __future__ import annotations

from typing import Any


class AnswerCounts:
    """Counts of contrasts, to be added up across processes.

    Attributes:
        total: All contrasts.
        preferred: Those with logit_true > logit_false.
        known: Those where no token is more likely than the true one.
    """

    def __init__(self) -> None:
        self.total = self.preferred = self.known = 0

    def add(self, logit_diff: float, rank_true: int) -> None:
        """Adds a contrast.

        Args:
            logit_diff: logit_true − logit_false.
            rank_true: How many tokens are more likely than the true one.
        """
        self.total += 1
        self.preferred += logit_diff > 0
        self.known += rank_true == 0

    def compute(self) -> dict[str, Any]:
        """The counts and shares as the summary has them; a share is None where there are no contrasts."""
        return {
            "contrasts": self.total,
            "contrast_accuracy": self.preferred / self.total if self.total else None,
            "known": self.known,
            "known_share": self.known / self.total if self.total else None,
        }
