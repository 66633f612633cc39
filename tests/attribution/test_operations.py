"""Operations and reads of data that a batch takes on an accelerator; see `operations`."""

from __future__ import annotations

import json
import subprocess
import sys

import operations
import pytest
from operations import Counts, Figures

# Operations, relative to one forward and one backward pass alone.
MOST = {"gradient": 1.1, "frozen-norm": 1.4, "linearised": 1.4, "norm-secant": 1.4}


@pytest.fixture(scope="module")
def figures() -> list[Figures]:
    command = [sys.executable, operations.__file__, "4"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    return [Figures(*line[:4], *(Counts(*each) for each in line[4:])) for line in lines]


def test_covers_every_rule_of_one_pass(figures: list[Figures]):
    assert {(each.model, each.rule) for each in figures} == {
        (model, rule) for model in ("gpt2", "llama") for rule in MOST
    }


def test_a_batch_takes_few_more_operations_than_its_passes(figures: list[Figures]):
    for each in figures:
        operations_of_batch = each.step.operations + each.copy.operations
        assert operations_of_batch <= MOST[each.rule] * each.passes.operations, each


def test_a_batch_is_not_waited_for(figures: list[Figures]):
    """A read of data would end the process: FakeTensorMode has none."""
    for each in figures:
        assert (each.step.reads, each.step.waits) == (0, 0), each


def test_results_are_read_by_one_copy(figures: list[Figures]):
    for each in figures:
        assert (each.copy.reads, each.copy.waits) == (1, 0), each


def test_operations_do_not_depend_on_rows_and_tokens(figures: list[Figures]):
    for each in figures:
        others = [other for other in figures if other[:3] == each[:3]]
        assert len(others) == len(operations.SHAPES)
        assert {(other.step.operations, other.copy.operations) for other in others} == {
            (each.step.operations, each.copy.operations)
        }
