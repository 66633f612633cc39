"""Two runs over the same facts: the figures of `lit-attr compare`, and the answers that changed."""

from __future__ import annotations

from typing import Any

from lit_attr.evaluation.index.parts import Fact
from lit_attr.evaluation.index.runs import RunIndex
from lit_attr.evaluation.run_comparison import compare_runs

MOST_CHANGED = 200


def pair_page(first: RunIndex, second: RunIndex, component: str) -> dict[str, Any]:
    """What differs between two runs, in JSON types.

    Raises:
        UserError: They have no contrast or no layer in common, or a file of one is damaged.
    """
    changed = changed_answers(first, second)
    return {
        "comparison": compare_runs(first.folder.path, second.folder.path, component=component),
        "changed": [_row(*pair) for pair in changed[:MOST_CHANGED]],
    }


def changed_answers(first: RunIndex, second: RunIndex) -> list[tuple[Fact, Fact]]:
    """The contrasts whose preferred or known answer changed, the former and the clearest changes first."""
    changed = [pair for pair in _matched(first, second) if _prefers(pair) or _knows(pair)]
    return sorted(changed, key=lambda pair: (not _prefers(pair), -abs(pair[1].logit_diff - pair[0].logit_diff)))


def _matched(first: RunIndex, second: RunIndex) -> list[tuple[Fact, Fact]]:
    """The contrasts that both runs have with the same tokens, as the comparison matches them."""
    ours, theirs = first.columns, second.columns
    pairs = [(fact, theirs.facts[theirs.row_of[fact.key]]) for fact in ours.facts if fact.key in theirs.row_of]
    return [(fact, other) for fact, other in pairs if fact.tokens == other.tokens and not fact.is_trivial]


def _prefers(pair: tuple[Fact, Fact]) -> bool:
    """Whether the preferred answer changed."""
    return (pair[0].logit_diff > 0) != (pair[1].logit_diff > 0)


def _knows(pair: tuple[Fact, Fact]) -> bool:
    """Whether the fact became known or unknown."""
    return (pair[0].rank_true == 0) != (pair[1].rank_true == 0)


def _row(fact: Fact, other: Fact) -> dict[str, Any]:
    return {
        "id": fact.key[0],
        "step": fact.key[1],
        "prompt": fact.prompt,
        "target_true": fact.target_true,
        "target_false": fact.target_false,
        "logit_diff": [fact.logit_diff, other.logit_diff],
        "rank_true": [fact.rank_true, other.rank_true],
    }
