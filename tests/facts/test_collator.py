"""The collator in other people's data loaders."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from datasets import Dataset
from project import writing_trainer
from torch.utils.data import DataLoader, IterableDataset
from toys import word_tokenizer
from transformers import PreTrainedTokenizerBase

from lit_attr.callbacks.writer import AttributionWriter
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.collator import ContrastCollator
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.module import AttributionModule

ROWS = [*open_rows(SAMPLE)][:10]
ANSWERS = [{("answer" if name == "target_true" else name): row[name] for name in row} for row in ROWS]


class Stream(IterableDataset):
    """Each worker's share of the rows, in their order."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        return iter(ROWS if worker is None else ROWS[worker.id :: worker.num_workers])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", [ROWS, Dataset.from_list(ROWS), Stream()], ids=["list", "dataset", "stream"])
def test_batches_the_rows_of_any_loader(tokenizer: PreTrainedTokenizerBase, source: Any, workers: int):
    loader = DataLoader(source, batch_size=4, num_workers=workers, collate_fn=ContrastCollator(tokenizer))
    batches = [*loader]
    assert {type(batch) for batch in batches} == {ContrastBatch}
    contrasts, _ = build_contrasts(read_facts(ROWS).facts, tokenizer)
    expected = {contrast.fact.prompt: contrast for contrast in contrasts}
    found = [contrast for batch in batches for contrast in batch.contrasts]
    assert len(found) == len(ROWS)
    for contrast in found:
        assert contrast.token_ids == expected[contrast.fact.prompt].token_ids
        assert contrast.subject_span == expected[contrast.fact.prompt].subject_span
    for batch in batches:
        assert torch.equal(batch.token_ids_BT, collate_contrasts(batch.contrasts).token_ids_BT)


def test_settings_mean_what_they_mean_in_the_data_module():
    words = word_tokenizer()
    settings = {
        "columns": {"target_true": "answer"},
        "template": "Q: {prompt}",
        "step": "all",
        "add_bos_token": True,
    }
    rows = [
        {
            "prompt": "The capital of Spain is",
            "subject": "Spain",
            "answer": "New York City",
            "target_false": "New Rome",
        },
        {
            "prompt": "The capital of Costa Rica is",
            "subject": "Costa Rica",
            "answer": "Rome",
            "target_false": "Paris",
        },
    ]
    data = CounterfactDataModule(rows, words, **settings)
    data.setup()
    batch = ContrastCollator(words, **settings)(rows)
    assert len(batch.contrasts) == 3
    assert [each.token_ids for each in batch.contrasts] == [each.token_ids for each in data.contrasts]
    assert {each.token_ids[0] for each in batch.contrasts} == {words.bos_token_id}
    assert batch.contrasts[0].fact.prompt == "Q: The capital of Spain is"


def test_can_be_pickled_and_made_from_the_name_of_a_tokenizer(tokenizer: PreTrainedTokenizerBase):
    sent = pickle.loads(pickle.dumps(ContrastCollator(DEMO_MODEL, template="Q: {prompt}")))
    batch, expected = sent(ROWS), ContrastCollator(tokenizer, template="Q: {prompt}")(ROWS)
    assert batch.contrasts == expected.contrasts


def test_an_id_is_the_rows_own_or_a_hash_of_the_fact(tokenizer: PreTrainedTokenizerBase):
    collator = ContrastCollator(tokenizer)
    numbered = [{**row, "case_id": place + 7} for place, row in enumerate(ROWS)]
    assert [each.fact.id for each in collator(numbered).contrasts] == [*range(7, 17)]
    bare = [{name: value for name, value in row.items() if name not in ("id", "case_id")} for row in ROWS]
    ids = {each.fact.prompt: each.fact.id for each in collator(bare).contrasts}
    assert len({*ids.values()}) == len(ROWS)
    # In another order, in other batches, with another column.
    for row in bare[::-1]:
        (contrast,) = collator([{**row, "other": 1}]).contrasts
        assert contrast.fact.id == ids[contrast.fact.prompt]
        assert contrast.fact.row == -1
    (other,) = collator([{**bare[0], "target_false": " nowhere"}]).contrasts
    assert other.fact.id not in ids.values()


def test_a_run_resumes_and_refuses_the_same_fact_twice(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    bare = [{name: value for name, value in row.items() if name not in ("id", "case_id")} for row in ROWS]
    for rows in (bare[:4], bare[::-1]):
        loader = DataLoader(rows, batch_size=4, collate_fn=ContrastCollator(tokenizer))
        trainer = writing_trainer(tmp_path)
        trainer.predict(AttributionModule(verify=0), loader)
    files = [json.loads(path.read_text())["examples"] for path in tmp_path.glob("batches/*.json")]
    prompts = [example["prompt"] for examples in files for example in examples]
    assert sorted(prompts) == sorted(row["prompt"] for row in bare)
    assert [each.resumed for each in trainer.callbacks if isinstance(each, AttributionWriter)] == [4]
    loader = DataLoader([bare[0], bare[0]], batch_size=1, collate_fn=ContrastCollator(tokenizer))
    with pytest.raises(UserError, match="came twice in one run; give every fact an id of its own"):
        writing_trainer(tmp_path / "twice").predict(AttributionModule(), loader)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target_false": None},
            "ContrastCollator.rows: 'target_false' is missing; fix this row, or leave it out of the data set: {",
        ),
        ({"subject": "Atlantis"}, "ContrastCollator.rows: the subject 'Atlantis' is not in the prompt"),
        ({"target_false": f"{ROWS[0]['target_true']} City"}, "ContrastCollator.rows: the answers ' "),
        ({"id": 1.5}, "ContrastCollator.rows: 'id' is float, not a whole number or text"),
    ],
)
def test_an_invalid_row_is_quoted(tokenizer: PreTrainedTokenizerBase, change: dict[str, Any], message: str):
    rows = [*ROWS[1:3], {**ROWS[0], "name": "the bad one", **change}]
    with pytest.raises(UserError) as raised:
        ContrastCollator(tokenizer)(rows)
    assert str(raised.value).startswith(message)
    assert "the data set: {'" in str(raised.value) and ROWS[0]["prompt"] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_invalid_row_is_quoted_from_a_worker_process(tokenizer: PreTrainedTokenizerBase):
    loader = DataLoader(
        [{**ROWS[0], "subject": "Atlantis"}], num_workers=1, collate_fn=ContrastCollator(tokenizer)
    )
    with pytest.raises(UserError, match="ContrastCollator.rows: the subject 'Atlantis' is not in the prompt"):
        next(iter(loader))


def test_a_long_row_is_cut(tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(UserError) as raised:
        ContrastCollator(tokenizer)([{**ROWS[0], "subject": "Atlantis", "image": "x" * 10_000}])
    assert len(str(raised.value)) < 500


def test_mistakes_in_the_settings_name_the_setting(tokenizer: PreTrainedTokenizerBase):
    for settings, rows, message in (
        ({}, ANSWERS, "ContrastCollator.rows: no column target_true; the columns are answer, prompt"),
        ({"columns": {"target_true": "anwser"}}, ANSWERS, "ContrastCollator.columns: there is no column 'anwser'"),
        ({"columns": {"truth": "answer"}}, ROWS, "ContrastCollator.columns: 'truth' is none of prompt, relation"),
        ({"template": "{prompt} {x}"}, ROWS, "ContrastCollator.template: there is no column 'x'; the columns are"),
        ({"template": "{prompt"}, ROWS, "ContrastCollator.template: '{prompt' cannot be read"),
        ({"tokenizer": "/none"}, ROWS, "ContrastCollator.tokenizer: there is no folder /none; check the path"),
    ):
        with pytest.raises(UserError) as raised:
            ContrastCollator(**{"tokenizer": tokenizer, **settings})(rows)
        assert str(raised.value).startswith(message)


def test_scores_equal_those_with_our_data_module(tokenizer: PreTrainedTokenizerBase):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    loader = DataLoader(
        Dataset.from_list(ROWS), batch_size=10, num_workers=2, collate_fn=ContrastCollator(tokenizer)
    )
    (batch,) = trainer.predict(AttributionModule(verify=0), loader)
    data = CounterfactDataModule(ROWS, batch_size=1)
    alone = {
        each.contrasts[0].fact.prompt: each
        for each in trainer.predict(AttributionModule(verify=0), datamodule=data)
    }
    for row, contrast in enumerate(batch.contrasts):
        width = len(contrast.tokens)
        expected = alone[contrast.fact.prompt].scores_sum_BLT[0]
        torch.testing.assert_close(batch.scores_sum_BLT[row, :, :width], expected, rtol=1e-4, atol=1e-5)
