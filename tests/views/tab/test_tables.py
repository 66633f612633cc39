"""The table of facts, against records written by hand."""

from __future__ import annotations

import csv
import io
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from tabs import ROUTE, Ask, client_of


def ids(found: dict[str, Any]) -> list[int | str]:
    return [row["id"] for row in found["rows"]]


def test_rows_have_what_the_records_have(ask: Ask):
    found = ask("facts", run="one")
    assert found["total"] == 4
    assert ids(found) == [1, 3, 10, "text"]
    row = found["rows"][1]
    assert row["prompt"] == "Spain is in" and row["target_true"] == " Europe" and row["relation"] == "P17"
    assert (row["logit_diff"], row["prob_true"], row["rank_true"]) == (1.5, 0.4, 0)
    assert row["largest"] == {"score": 8, "layer": 1, "token": 3}
    assert row["is_checked"] and row["error"] == pytest.approx(3 / sqrt(55))
    assert found["rows"][0]["error"] is None and not found["rows"][0]["is_checked"]


@pytest.mark.parametrize(
    "sort, order, expected",
    [
        ("id", "desc", ["text", 10, 3, 1]),
        ("logit_diff", "asc", [1, 10, 3, "text"]),
        ("logit_diff", "desc", ["text", 3, 10, 1]),
        ("prob_true", "desc", ["text", 3, 10, 1]),
        ("rank_true", "asc", [3, "text", 10, 1]),
        # Of either sign: 8, -6, 5, 2.
        ("largest", "desc", [3, 1, 10, "text"]),
        # What has no error comes last.
        ("error", "desc", [3, 1, 10, "text"]),
        ("error", "asc", [3, 1, 10, "text"]),
    ],
)
def test_sorting(sort: str, order: str, expected: list[int | str], ask: Ask):
    assert ids(ask("facts", run="one", sort=sort, order=order)) == expected


@pytest.mark.parametrize(
    "filters, expected",
    [
        ({"known": "yes"}, [3, "text"]),
        ({"known": "no"}, [1, 10]),
        ({"preferred": "no"}, [1]),
        ({"checked": "yes"}, [3]),
        ({"checked": "no"}, [1, 10, "text"]),
        ({"relation": "P36"}, [1, 10]),
        ({"relation": "P36", "preferred": "yes"}, [10]),
        ({"search": "SPAIN"}, [3]),
        ({"search": "in europe"}, [3]),
        ({"search": "peru europe"}, []),
        ({"search": "a.b"}, []),
    ],
)
def test_filters(filters: dict[str, str], expected: list[int | str], ask: Ask):
    found = ask("facts", run="one", **filters)
    assert ids(found) == expected
    assert found["total"] == len(expected)


def test_a_cell_lists_the_facts_that_contribute_most(ask: Ask):
    found = ask("facts", run="one", layer=0, role="first subsequent", sort="cell", order="desc")
    # The third token of each, in layer 0: 5, 2, 0, 0.
    assert [(row["id"], row["cell"]) for row in found["rows"]] == [(10, 5), (3, 2), (1, 0), ("text", 0)]
    # No prompt has a token before its subject, but the first.
    assert ask("facts", run="one", layer=0, role="prefix")["total"] == 0


def test_pages_part_the_table(ask: Ask):
    assert ids(ask("facts", run="one", size=3)) == [1, 3, 10]
    assert ids(ask("facts", run="one", size=3, page=2)) == ["text"]
    assert "2 pages of 3 rows" in ask("facts", status=404, run="one", size=3, page=3)


def test_csv_has_all_chosen_facts(run: Path):
    answer = client_of(run.parent).get(f"{ROUTE}facts.csv", query_string={"run": "one", "known": "yes"})
    rows = list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))
    assert [row["id"] for row in rows] == ["3", "text"]
    assert float(rows[0]["relative_error"]) == pytest.approx(3 / sqrt(55)) and rows[1]["relative_error"] == ""
    assert rows[0]["target_true"] == " Europe"


def test_a_layer_that_the_run_does_not_have(ask: Ask):
    message = ask("facts", status=404, run="one", layer=7, role="last")
    assert "layer: the run has no scores of layer 7; it has 0, 1" in message
