"""The index of a run: a few numbers and texts of each contrast, and which of them are chosen in which order."""

from __future__ import annotations

from typing import Literal

# What facts are sorted by. Here, where it is read without NumPy: the help of the command line names them.
Sort = Literal["id", "logit_diff", "prob_true", "rank_true", "largest", "error"]
