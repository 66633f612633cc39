"""Rows in other libraries' tables and formats give the facts that the same rows give as dicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from project import REPOSITORY
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import ArgumentError, UserError
from lit_attr.facts.collator import ContrastCollator
from lit_attr.facts.rows import FactTable, parse_fact, read_facts
from lit_attr.facts.sources import has_splits, open_rows
from lit_attr.notebook import attribute

CASES = REPOSITORY / "tests" / "support" / "cases"
ROWS = [
    {
        "id": 4 + number,
        "prompt": f"The capital of {country} is",
        "subject": country,
        "target_true": capital,
        "target_false": " Rome",
        "relation_id": "P36",
        "year": 1900 + number,
    }
    for number, (country, capital) in enumerate((("Spain", "Madrid"), ("France", " Paris"), ("Peru", "Lima")))
]
# Some cells are empty, and one row is refused.
GAPS = [
    {**ROWS[0], "id": None},
    {**ROWS[1], "prompt": None, "relation": "The capital of {} is"},
    {**ROWS[2], "target_true": None},
    {**ROWS[2], "relation_id": None},
]


def facts(source: Any, **settings: Any) -> FactTable:
    return read_facts(open_rows(source, **settings))


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows)


def extension_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).convert_dtypes()


def in_format(kind: str) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: datasets.Dataset.from_list(rows).with_format(kind)


def streamed(rows: list[dict[str, Any]]) -> datasets.IterableDataset:
    return datasets.Dataset.from_list(rows).to_iterable_dataset().with_format("numpy")


def one_split(rows: list[dict[str, Any]]) -> datasets.DatasetDict:
    return datasets.DatasetDict({"validation": datasets.Dataset.from_list(rows).with_format("torch")})


def one_streamed_split(rows: list[dict[str, Any]]) -> datasets.IterableDatasetDict:
    return datasets.IterableDatasetDict({"train": streamed(rows)})


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "DataFrame": frame,
    "DataFrame with extension types": extension_frame,
    "data set": datasets.Dataset.from_list,
    "torch format": in_format("torch"),
    "numpy format": in_format("numpy"),
    "pandas format": in_format("pandas"),
    "arrow format": in_format("arrow"),
    "stream": streamed,
    "DatasetDict": one_split,
    "IterableDatasetDict": one_streamed_split,
}


@pytest.mark.parametrize("rows", [ROWS, GAPS], ids=["whole", "gaps"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_are_the_facts_of_dicts(kind: str, rows: list[dict[str, Any]]):
    # A table has every column in every row.
    every = {name: None for row in rows for name in row}
    rows = [{**every, **row} for row in rows]
    expected = facts(rows)
    found = facts(KINDS[kind](rows))
    assert found == expected
    assert repr(found.facts) == repr(expected.facts)


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_every_kind_has_the_identity_of_dicts(kind: str, tokenizer: PreTrainedTokenizerBase):
    given, plain = (CounterfactDataModule(source, tokenizer) for source in (KINDS[kind](ROWS), ROWS))
    for data in (given, plain):
        data.setup()
    assert given.contrasts == plain.contrasts
    assert {**given.identity(), "source": "list"} == plain.identity()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Dict" not in kind])
def test_records_of_every_kind_are_those_of_dicts(kind: str):
    given, plain = attribute(facts=KINDS[kind](ROWS)), attribute(facts=ROWS)
    assert len(given) == len(ROWS)
    for ours, theirs in zip(given, plain, strict=True):
        assert ours.keys() == theirs.keys()
        assert repr(dict(ours)) == repr(dict(theirs))


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_the_collator_takes_rows_in_tensors(kind: str, tokenizer: PreTrainedTokenizerBase):
    rows = datasets.Dataset.from_list(ROWS).with_format(kind)
    (batch,) = DataLoader(rows, batch_size=3, collate_fn=ContrastCollator(tokenizer))
    assert batch.contrasts == ContrastCollator(tokenizer)(ROWS).contrasts


def test_a_users_own_transform_is_kept():
    shouting = datasets.Dataset.from_list(ROWS)
    shouting.set_transform(lambda batch: {**batch, "target_true": [each.upper() for each in batch["target_true"]]})
    assert [fact.target_true for fact in facts(shouting).facts] == [" MADRID", " PARIS", " LIMA"]


def test_cells_that_are_scalars_of_other_libraries_are_their_values():
    for number in (np.array(7), torch.tensor(7), torch.tensor(7.0), np.float32(7)):
        fact = parse_fact({**ROWS[0], "id": number, "relation_id": number}, 0)
        assert (fact.id, fact.relation_id, type(fact.id)) == (7, "7", int)
    assert parse_fact({**ROWS[0], "id": np.float32("nan")}, 9).id == 9
    assert type(parse_fact({**ROWS[0], "prompt": np.str_(ROWS[0]["prompt"])}, 0).prompt) is str
    with pytest.raises(UserError, match="no column"):
        read_facts([{"id": torch.empty((), device="meta")}])


def refusal(source: Any, **settings: Any) -> str:
    with pytest.raises(ArgumentError) as refused:
        list(open_rows(source, **settings))
    assert str(refused.value).isprintable()
    return str(refused.value)


def test_several_splits_need_a_choice():
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS[:1]), "test": frame_set()})
    assert refusal(splits) == "split: a DatasetDict has the splits train, test; choose one"
    assert refusal(splits, split="dev") == "split: a DatasetDict has no split 'dev'; it has train, test"
    assert [fact.subject for fact in facts(splits, split="test").facts] == ["France", "Peru"]
    assert "has the splits none" in refusal(datasets.DatasetDict())
    assert has_splits(splits) and not has_splits(ROWS[0]) and not has_splits(splits["train"])


def frame_set() -> datasets.Dataset:
    return datasets.Dataset.from_pandas(frame(ROWS[1:]))


def test_settings_of_other_sources_are_refused(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    for source, name in (
        (ROWS, "a list"),
        (frame(ROWS), "a DataFrame"),
        ("sample", "sample"),
        (str(path), str(path)),
    ):
        assert refusal(source, revision="v1") == f"revision: 'v1' is for hub data sets; {name} is not one"
    assert refusal(ROWS, split="test") == "split: 'test' is for data sets with splits; a list is not one"


def test_a_frame_with_a_column_twice_is_refused():
    twice = frame(ROWS)
    twice.columns = [*twice.columns[:-1], "id"]
    assert refusal(twice) == "source: two columns are named 'id'; rename one"


@pytest.mark.parametrize("kind", ["data set", "torch format", "DatasetDict"])
@pytest.mark.parametrize("name", ["saved", "saved.json"])
def test_a_folder_that_save_to_disk_wrote_is_read(tmp_path: Path, kind: str, name: str):
    KINDS[kind](ROWS).save_to_disk(tmp_path / name)
    assert facts(str(tmp_path / name)) == facts(ROWS)


def test_a_saved_folder_of_several_splits_needs_a_choice(tmp_path: Path):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS[:1]), "test": frame_set()})
    splits.save_to_disk(tmp_path / "saved")
    assert refusal(str(tmp_path / "saved")) == f"split: {tmp_path}/saved has the splits train, test; choose one"
    assert len(facts(str(tmp_path / "saved"), split="test").facts) == 2
    assert "revision: 'v1' is for hub data sets" in refusal(str(tmp_path / "saved"), revision="v1")


@pytest.mark.parametrize("damage", ["empty", "missing", "cut"])
def test_a_damaged_saved_folder_is_refused_in_one_line(tmp_path: Path, damage: str):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    if damage == "empty":
        (tmp_path / "saved" / "dataset_info.json").write_text("")
    elif damage == "missing":
        arrow.unlink()
    else:
        arrow.write_bytes(arrow.read_bytes()[:300])
    assert refusal(str(tmp_path / "saved")).startswith(f"source: {tmp_path}/saved: not a complete data set (")


REQUEST = {"prompt": "The capital of {} is", "subject": "Spain"}


@pytest.mark.parametrize(
    "answers",
    [
        {"target_true": "Madrid", "target_false": "Lisbon"},
        {"target_true": {"str": "Madrid"}, "target_false": {"str": "Lisbon"}},
        {"target_true": {"str": "Madrid", "id": "Q2807"}, "target_new": {"str": "Lisbon", "id": "Q597"}},
        {"target_true": "Madrid", "target_new": "Lisbon"},
    ],
)
def test_a_request_of_rome_is_the_fact_of_its_relation(answers: dict[str, Any]):
    plain = {"relation": REQUEST["prompt"], "subject": "Spain", "target_true": "Madrid", "target_false": "Lisbon"}
    for extra in ({}, {"case_id": 12, "relation_id": "P36"}):
        assert facts([{**REQUEST, **answers, **extra}]) == facts([{**plain, **extra}])


def test_the_case_of_rome_is_filled():
    (fact,) = facts(str(CASES / "rome-request.jsonl")).facts
    assert (fact.prompt, fact.subject_start) == ("The capital of Spain is", 15)
    assert (fact.target_true, fact.target_false) == (" Madrid", " Lisbon")


def test_braces_in_a_prompt_that_has_its_subject_are_text():
    (fact,) = facts([{**ROWS[0], "prompt": "In Spain, {} is"}]).facts
    assert fact.prompt == "In Spain, {} is"


def test_the_revision_of_a_hub_data_set_is_passed_on_and_part_of_the_identity(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
):
    asked: list[tuple[str, dict[str, Any]]] = []

    def splits_of(name: str, **given: Any) -> list[str]:
        asked.append((name, given))
        return ["test"]

    def load(name: str, **given: Any) -> datasets.Dataset:
        asked.append((name, given))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.get_dataset_split_names", splits_of)
    monkeypatch.setattr("datasets.load_dataset", load)
    identities = []
    for revision in (None, "v1"):
        data = CounterfactDataModule("some/facts", tokenizer, revision=revision)
        data.setup()
        identities.append(data.identity()["revision"])
    assert identities == [None, "v1"]
    assert asked == [
        ("some/facts", {}),
        ("some/facts", {"split": "test"}),
        ("some/facts", {"revision": "v1"}),
        ("some/facts", {"split": "test", "revision": "v1"}),
    ]


def test_a_revision_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    line = refusal("nobody/nothing", revision="v1")
    assert "no data set 'nobody/nothing' could be loaded" in line and "check name, revision and network" in line


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_csv_with_another_separator_is_read(tmp_path: Path, separator: str):
    path = tmp_path / "facts.csv"
    path.write_text(f'a{separator}b\n"1, x{separator}y"{separator}2,5\n')
    assert list(open_rows(str(path))) == [{"a": f"1, x{separator}y", "b": "2,5"}]


def test_csv_with_a_space_after_each_comma_is_read(tmp_path: Path):
    path = tmp_path / "facts.csv"
    path.write_text('a, b, c\n1, "2, 3", 4\n')
    assert list(open_rows(str(path))) == [{"a": "1", "b": "2, 3", "c": "4"}]
    # Elsewhere a space is part of the cell.
    path.write_text('a,b,c\n1, 2,"3"\n')
    assert list(open_rows(str(path))) == [{"a": "1", "b": " 2", "c": "3"}]
    path.write_text("a, b,c\n1, 2,3\n")
    with pytest.raises(UserError, match="the columns are ' b', a, c;"):
        facts(str(path))


@pytest.mark.parametrize("name", ["semicolon.csv", "space-after-comma.csv"])
def test_the_cases_of_csv_are_read(name: str):
    (fact,) = facts(str(CASES / name)).facts
    assert (fact.prompt, fact.subject) == ("The capital of Spain is", "Spain")
    assert (fact.target_true, fact.target_false) == (" Madrid", " Paris")
