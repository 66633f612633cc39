"""What the closing lines say of number formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_attr.evaluation.closing import closing_lines
from lit_attr.evaluation.formats import MEASURED, format_lines
from lit_attr.evaluation.summary import summarise
from lit_attr.facts.rows import Rejected
from lit_attr.records.folder import RunFolder

EIGHT = {"quantization": "8bit", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({"dtype": "bfloat16", "quantization": None}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({**EIGHT, "llm_int8_threshold": 6.0}, "8bit"),
        ({**EIGHT, "llm_int8_threshold": 0.0}, "8bit, threshold 0"),
        ({"quantization": "4bit", "dtype": "float32"}, "4bit"),
    ],
)
def test_a_format_has_one_line_with_what_was_measured(settings: dict[str, Any], measured: str):
    (line,) = format_lines(settings, 0)
    assert line.startswith("number format: ")
    assert f" in {MEASURED[measured].name} and in float32 " in line
    assert f"r = {MEASURED[measured].smollm2:.3f} on SmolLM2-135M" in line


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "float32", "quantization": None},
        {"dtype": "float32", "quantization": "torchao"},
        # No gradient is taken.
        {"dtype": "bfloat16", "rule": "exact"},
    ],
)
def test_other_runs_have_none(settings: dict[str, Any]):
    assert not [*format_lines(settings, 3)]


def test_a_run_that_overflows_names_bfloat16(tmp_path: Path):
    run = RunFolder(tmp_path)
    refused = [
        Rejected(row, row, "a score or logit is not finite", step) for row, step in ((0, 0), (1, 0), (2, None))
    ]
    run.open({"model": {"dtype": "float16", "rule": "gradient"}, "data": {}}, refused)
    run.write_summary(summarise(run).summary)
    (line,) = [line for line in closing_lines(tmp_path, pictures=False).splitlines() if "overflowed" in line]
    assert line == (
        "float16 overflowed: 2 contrasts were refused, since a number was not finite; set dtype to bfloat16"
    )
