"""Runs of made-up records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lit_attr.attribution.results import AttributionBatch
from lit_attr.facts.roles import roles_of
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import ComponentScores, CurvesRecord, ExactRecord, Example, Rankings

PERCENT = [1, 2, 5, 10, 20, 50]
RANKINGS = ("scores", "exact", "random")


@pytest.fixture
def example(batch: AttributionBatch) -> Example:
    """A contrast as a batch file has it."""
    return batch_record(batch).examples[0]


@pytest.fixture
def make_run(batch: AttributionBatch, tmp_path: Path) -> Callable[..., RunFolder]:
    """Writes the records of a run, several a file where `sizes` says so."""

    def make(
        examples: list[Example],
        exact: list[ExactRecord] | tuple[()] = (),
        *,
        sizes: list[int] | None = None,
        name: str = "run",
        model: dict[str, Any] | None = None,
        step: str | None = None,
    ) -> RunFolder:
        folder = RunFolder(tmp_path / name)
        folder.open({"model": model or {}, "data": {"step": step} if step else {}}, [])
        record = batch_record(batch)
        start = 0
        for size in sizes or [1] * len(examples):
            folder.write_batch(msgspec.structs.replace(record, examples=examples[start : start + size]))
            start += size
        assert start == len(examples)
        for each in exact:
            folder.write_exact(each)
        return folder

    return make


@pytest.fixture
def drawn(example: Example) -> Callable[..., list[Example]]:
    """Draws contrasts of several lengths, subjects, relations and answers."""

    def draw(count: int, seed: int = 0) -> list[Example]:
        generator = np.random.default_rng(seed)
        found = []
        for contrast_id in range(count):
            length = int(generator.integers(5, 9))
            start = int(generator.integers(0, length - 1))
            span = [start, int(generator.integers(start + 1, length))]
            scores = [generator.standard_normal((3, length)) * 10.0 ** generator.integers(-3, 3) for _ in range(2)]
            found.append(
                msgspec.structs.replace(
                    example,
                    id=contrast_id,
                    relation_id=f"P{generator.integers(1, 4)}",
                    tokens=[f"t{place}" for place in range(length)],
                    roles=list(roles_of(length, (span[0], span[1]))),
                    subject_span=span,
                    logit_diff=float(generator.standard_normal()),
                    rank_true=int(generator.integers(0, 3)),
                    scores={"mlp": ComponentScores(*scores)},
                )
            )
        return found

    return draw


@pytest.fixture
def exact_of() -> Callable[..., ExactRecord]:
    """Draws the exact effects of a contrast, near its scores, and its curves."""

    def make(
        example: Example, place: int | None, *, refused: str | None = None, curves: bool = True
    ) -> ExactRecord:
        generator = np.random.default_rng(hash((example.id, example.step)) % 1000)
        scores_LT = example.scores["mlp"].sum
        effects_LT = scores_LT * generator.uniform(0.5, 1.5, scores_LT.shape)
        effects_LT += 0.3 * np.abs(scores_LT).mean() * generator.standard_normal(scores_LT.shape)

        def rankings() -> Rankings:
            return Rankings(*(generator.standard_normal(len(PERCENT)).tolist() for _ in RANKINGS))

        return ExactRecord(
            format="lit-attr/exact",
            version=2,
            layers=[0, 1, 2],
            rule="gradient",
            ablation="zero",
            id=example.id,
            step=example.step,
            place=place,
            effects={"mlp": effects_LT},
            resolution=0.01 * (example.id % 3),
            curves=CurvesRecord(example.logit_diff, PERCENT, rankings(), rankings()) if curves else None,
            refused=refused,
        )

    return make
