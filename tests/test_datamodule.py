"""The data module by itself, with our module, and with modules of other people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from datasets import Dataset
from toys import word_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from lit_attr.datamodule import CounterfactDataModule, DataRequirements
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.contrasts import digest_contrast, random_order
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.module import AttributionModule
from lit_attr.records.scored import Entry, Scored
from lit_attr.records.state import RunState

QUIET = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
ROWS = [
    {
        "prompt": f"The capital of {country} is",
        "subject": country,
        "target_true": true,
        "target_false": " Rome",
        "relation_id": relation,
    }
    for country, true, relation in (
        ("Spain", " Madrid", "P36"),
        ("France", " Paris", "P36"),
        ("a far and very long country", " Oslo", "P36"),
        ("Peru", " Lima", "P17"),
    )
]


def ids(data: CounterfactDataModule) -> list[list[Any]]:
    data.setup("predict")
    return [[contrast.fact.id for contrast in batch.contrasts] for batch in data.predict_dataloader()]


def test_the_sample_is_the_default():
    data = CounterfactDataModule()
    found = [fact_id for batch in ids(data) for fact_id in batch]
    assert sorted(found) == list(range(len(found)))
    assert len(found) >= 300
    assert not data.rejected


def test_batches_rows_of_similar_length():
    assert ids(CounterfactDataModule(ROWS, batch_size=2))[0][0] == 2
    data = CounterfactDataModule(ROWS, batch_size=8, max_tokens=20)
    data.setup()
    for batch in data.predict_dataloader():
        assert isinstance(batch, ContrastBatch)
        assert batch.token_ids_BT.numel() <= 20 or len(batch.contrasts) == 1


@pytest.mark.parametrize("source", ["file", "dataset", "list"])
def test_reads_files_data_sets_and_lists(tmp_path: Path, source: str):
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    sources = {"file": str(path), "dataset": Dataset.from_list(ROWS), "list": ROWS}
    assert sorted(sum(ids(CounterfactDataModule(sources[source])), [])) == [0, 1, 2, 3]


def test_filters_and_limits():
    assert sorted(sum(ids(CounterfactDataModule(ROWS, where="P36", limit=2)), [])) == [0, 1]
    assert sum(ids(CounterfactDataModule(ROWS, where=["P17", "P30"])), []) == [3]


def test_accepts_a_tokenizer_object(tokenizer: PreTrainedTokenizerBase):
    data = CounterfactDataModule(ROWS, tokenizer)
    data.setup()
    assert data.tokenizer is tokenizer


def test_lists_refused_rows_with_their_reasons():
    data = CounterfactDataModule([*ROWS, {**ROWS[0], "subject": None}, {**ROWS[0], "target_true": " Rome"}])
    assert sum(map(len, ids(data))) == 4
    assert [row.row for row in data.rejected] == [4, 5]


def test_strict_stops_at_the_first_refused_row():
    data = CounterfactDataModule([*ROWS, {**ROWS[0], "subject": None}], strict=True)
    with pytest.raises(
        UserError, match=r"row 4 \(id 4\): 'subject' is missing; fix the row, or set strict to false to leave it"
    ):
        data.setup()


def test_refuses_a_source_without_a_usable_row():
    data = CounterfactDataModule([{**ROWS[0], "subject": "Peru"}])
    with pytest.raises(UserError, match=r"no row of 1 can be used; the first, row 0 \(id 0\): the subject 'Peru'"):
        data.setup()


@pytest.mark.parametrize("setting", ["batch_size", "limit", "max_tokens"])
def test_refuses_sizes_below_one(setting: str):
    with pytest.raises(UserError, match=f"data.{setting}: 0 is less than 1"):
        CounterfactDataModule(ROWS, **{setting: 0})
    with pytest.raises(UserError, match="data.num_workers: -1 is less than 0"):
        CounterfactDataModule(ROWS, num_workers=-1)


class KeepsState(pl.Callback):
    """Owns the state of a run, as the writer does."""

    def __init__(self, state: RunState) -> None:
        self.state = state

    def run_state(self, trainer: pl.Trainer) -> RunState:
        return self.state


def batches_of(data: CounterfactDataModule, state: RunState, **requirements: Any) -> list[ContrastBatch]:
    """The batches of a run that starts from this state."""
    data.trainer = pl.Trainer(accelerator="cpu", **QUIET, callbacks=[KeepsState(state)])
    data.make_contrasts(DataRequirements(tokenizer=DEMO_MODEL, **requirements))
    return [*data.predict_dataloader()]


def test_leaves_out_what_is_done():
    data = CounterfactDataModule(ROWS)
    data.setup()
    written = [Entry((0, 0), digest_contrast(data.contrasts[0]), "a.json"), Entry((2, 1), 0, "a.json")]
    state = RunState(done=Scored(written), refused=frozenset({(3, 0)}))
    batches = batches_of(CounterfactDataModule(ROWS), state)
    assert sorted(contrast.fact.id for batch in batches for contrast in batch.contrasts) == [1, 2]


def test_the_sample_follows_the_scores_one_contrast_a_batch():
    data = CounterfactDataModule(ROWS)
    batches = batches_of(data, RunState(), verify=3, sample_seed=5)
    order = random_order([contrast.key for contrast in data.contrasts], 5)
    assert [batch.comparison for batch in batches][-4:] == [None, (1, 3), (2, 3), (3, 3)]
    assert [batch.contrasts[0].key for batch in batches[-3:]] == order[:3]
    assert sum(len(batch.contrasts) for batch in batches[:-3]) == len(ROWS)
    for batch in batches:
        assert batch.places == tuple(order.index(contrast.key) for contrast in batch.contrasts)


def test_the_sample_replaces_what_was_refused_and_leaves_out_what_is_there():
    data = CounterfactDataModule(ROWS)
    data.make_contrasts(DataRequirements(tokenizer=DEMO_MODEL))
    first, second, third, fourth = random_order([contrast.key for contrast in data.contrasts], 0)
    state = RunState(refused=frozenset({first}), exact={second: False, third: True})
    batches = batches_of(data, state, verify=2)
    (compared,) = (batch.contrasts[0].key for batch in batches if batch.comparison is not None)
    assert compared == fourth
    assert not state.spares
    assert batches_of(data, RunState(), verify=1)[-1].contrasts[0].key == first


@pytest.mark.parametrize(("add_bos_token", "begins"), [(None, False), (True, True), (False, False)])
def test_adds_the_beginning_of_sequence_token_on_request(add_bos_token: bool | None, begins: bool):
    words = word_tokenizer()
    data = CounterfactDataModule(ROWS[:1], words, add_bos_token=add_bos_token)
    data.setup()
    assert data.contrasts[0].token_ids == tuple([words.bos_token_id] * begins + words(ROWS[0]["prompt"]).input_ids)
    assert data.identity()["add_bos_token"] is add_bos_token


def test_identity_follows_the_tokens():
    identities = []
    for words in (word_tokenizer(), word_tokenizer("<s> $A")):
        data = CounterfactDataModule(ROWS, words)
        data.setup()
        identities.append(data.identity()["content"])
    data.contrasts = [found._replace(false_token_id=found.false_token_id + 1) for found in data.contrasts]
    assert len({*identities, data.identity()["content"]}) == 3


def test_identity_follows_the_content_not_the_file(tmp_path: Path):
    identities = []
    for name, rows in (("a", ROWS), ("b", ROWS), ("c", ROWS[:3])):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(rows))
        data = CounterfactDataModule(str(path), batch_size=len(identities) + 1)
        data.setup()
        identities.append(data.identity())
    assert identities[0]["content"] == identities[1]["content"] != identities[2]["content"]
    assert identities[2]["contrasts"] == 3


PAIRS = [
    {**ROWS[0], "relation": "The capital of {} is", "id": f"row {at}", "prompt": f"The capital of {country} is"}
    | {"subject": country, "target_true": true, "target_false": false, "donor": donor}
    for at, (country, true, false, donor) in enumerate(
        (
            ("Spain", "Madrid", "Rome", "row 3"),
            ("New York City", "Orleans", "Rome", "row 0"),
            ("Rica", "Paris", "York", "row 2"),
            ("Costa", "Rome", "Madrid", "row 9"),
        )
    )
]
RESAMPLE = DataRequirements(ablation="resample")


def prepared(
    rows: Any = PAIRS, requirements: DataRequirements = RESAMPLE, **settings: Any
) -> CounterfactDataModule:
    data = CounterfactDataModule(rows, word_tokenizer(), **settings)
    data.make_contrasts(requirements)
    return data


def test_contrasts_have_donors_where_the_ablation_asks_for_them():
    """`word_tokenizer` gives each word of these prompts one token."""
    data = prepared()
    donors = {contrast.fact.id: contrast.donor.id for contrast in data.contrasts}
    assert donors == {"row 0": "row 3", "row 2": donors["row 2"], "row 3": "row 0"}
    (rejected,) = data.rejected
    assert (rejected.row, rejected.id, rejected.step) == (1, "row 1", None)
    assert rejected.reason.startswith(
        "no donor: no other row with its relation and template has 3, 3 and 1 tokens"
    )
    for batch in data.predict_dataloader():
        assert batch.donor_token_ids_BT.tolist() == [[*each.donor.token_ids] for each in batch.contrasts]
    for ablation in ("zero", "mean"):
        plain = prepared(requirements=DataRequirements(ablation=ablation))
        assert [contrast.donor for contrast in plain.contrasts] == [None] * 4
        assert next(iter(plain.predict_dataloader())).donor_token_ids_BT is None


def test_strict_stops_at_the_first_row_without_a_donor():
    with pytest.raises(
        UserError, match=r"^data.source: row 1 \(id 'row 1'\): no donor: .*; fix the row, or set stri"
    ):
        prepared(strict=True)


def test_the_pilot_and_the_sample_have_the_donors_of_their_contrasts():
    data = CounterfactDataModule(PAIRS, word_tokenizer())
    batches = batches_of(data, RunState(), verify=1, pilot=1, ablation="resample")
    assert [batch.comparison for batch in batches] == [(1, 1), None, (1, 1)]
    assert all(contrast.donor is not None for batch in batches for contrast in batch.contrasts)
    assert {contrast.fact.id for batch in batches for contrast in batch.contrasts} == {"row 0", "row 2", "row 3"}


def test_a_larger_limit_changes_no_donor():
    """An earlier run can be extended: the rows that it has are the same ones."""
    whole = prepared()
    for limit in (1, 2, 3):
        data = prepared(limit=limit)
        assert data.contrasts == whole.contrasts[: len(data.contrasts)]
        assert data.content() == whole.content(len(data.contrasts))
        assert data.rejected == [each for each in whole.rejected if each.row < limit]


def test_the_column_of_donors_names_them():
    data = prepared(donor_column="donor")
    assert {contrast.fact.id: contrast.donor.id for contrast in data.contrasts} == {
        "row 0": "row 3",
        "row 2": "row 2",
    }
    assert [(each.id, each.reason.split(";")[0]) for each in data.rejected] == [
        ("row 1", "its donor 'row 0' has 3, 1 and 1 tokens before, in and after the subject"),
        ("row 3", "its donor has the id 'row 9', which no usable row has"),
    ]
    with pytest.raises(
        UserError, match="^data.donor_column: there is no column 'doner'; the columns are donor, id"
    ):
        prepared(donor_column="doner")


def test_the_column_of_donors_is_ignored_where_the_ablation_has_none(caplog: pytest.LogCaptureFixture):
    data = prepared(requirements=DataRequirements(), donor_column="nothing")
    assert (len(data.contrasts), data.rejected, data.identity()["donor_column"]) == (4, [], None)
    assert caplog.messages[0] == (
        "data.donor_column: zero ablation takes no donors, so it is ignored; resample ablation takes them"
    )


def test_identity_follows_the_donors():
    """A change of the rows that a limit leaves out is one of the run where it changes donors."""
    settings = [{}, {"donor_column": "donor"}]
    first, second = (prepared(limit=1, **each) for each in settings)
    assert (first.identity()["donor_column"], second.identity()["donor_column"]) == (None, "donor")
    assert first.content() == second.content()
    changed = [*PAIRS[:3], {**PAIRS[3], "subject": "Orleans", "prompt": "The capital of Orleans is"}]
    assert prepared(changed, limit=1).content() != first.content()
    plain = DataRequirements()
    assert prepared(changed, plain, limit=1).content() == prepared(PAIRS, plain, limit=1).content()
    # The relation is no part of a run without donors.
    renamed = [{**each, "relation": None} for each in PAIRS]
    assert prepared(renamed, plain).content() == prepared(PAIRS, plain).content()


def test_donors_follow_the_sample_seed():
    data = [prepared(requirements=RESAMPLE._replace(sample_seed=seed)) for seed in range(10)]
    found = [{contrast.fact.id: contrast.donor.id for contrast in each.contrasts} for each in data]
    # Of row 2 alone no other row has the false answer.
    assert {donors["row 0"] for donors in found} == {"row 3"}
    assert {donors["row 2"] for donors in found} == {"row 0", "row 3"}


def test_rows_that_can_be_read_once_serve_one_kind_of_ablation():
    data = prepared(iter(PAIRS))
    data.make_contrasts(RESAMPLE._replace(sample_seed=1))
    with pytest.raises(
        UserError, match="^data.source: its rows can be read once, and a run with another ablation"
    ):
        data.make_contrasts(DataRequirements())
    again = prepared(PAIRS)
    again.make_contrasts(DataRequirements())
    assert [contrast.donor for contrast in again.contrasts] == [None] * 4


class PlainModule(pl.LightningModule):
    """Takes contrasts, and keeps a tokenizer as many Lightning projects do."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def predict_step(self, batch: ContrastBatch, batch_idx: int) -> list[tuple[Any, int]]:
        return [(contrast.fact.id, contrast.step) for contrast in batch.contrasts]


class StrangersModule(PlainModule):
    """Asks for all steps."""

    def data_requirements(self) -> DataRequirements:
        return DataRequirements(step="all", tokenizer=self.tokenizer)


def test_follows_the_module_of_each_run(tokenizer: PreTrainedTokenizerBase):
    """A loop over models, as is common: the next one has another tokenizer, another step, and no writer."""
    data = CounterfactDataModule(iter(ROWS))
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    first = sum(trainer.predict(StrangersModule(tokenizer), datamodule=data), [])
    words = word_tokenizer()
    second = sum(trainer.predict(PlainModule(words), datamodule=data), [])
    assert {step for _, step in second} == {0} != {step for _, step in first}
    assert data.contrasts[0].token_ids == tuple(words(ROWS[0]["prompt"]).input_ids)


def test_asks_for_a_tokenizer_where_there_is_none(tokenizer: PreTrainedTokenizerBase):
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    module = AttributionModule(model=GPT2LMHeadModel(GPT2Config(vocab_size=2000, n_layer=1, n_embd=8, n_head=1)))
    with pytest.raises(
        UserError, match="data.tokenizer: neither the module nor the data module has one; give one"
    ):
        trainer.predict(module, datamodule=CounterfactDataModule(ROWS))
    assert trainer.predict(module, datamodule=CounterfactDataModule(ROWS, tokenizer))


def test_refuses_a_tokenizer_larger_than_the_embedding(tokenizer: PreTrainedTokenizerBase):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer) - 1, n_layer=1, n_embd=8, n_head=1))
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    size = len(tokenizer)
    with pytest.raises(UserError, match=f"data.tokenizer: it has {size} tokens, but the model embeds {size - 1}"):
        trainer.predict(
            AttributionModule(model=model, tokenizer=tokenizer), datamodule=CounterfactDataModule(ROWS)
        )


def test_refuses_a_prompt_longer_than_the_models_positions(tokenizer: PreTrainedTokenizerBase):
    data = CounterfactDataModule([*ROWS, {**ROWS[0], "prompt": "The capital of Spain is" + " so" * 70}])
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    batches = trainer.predict(AttributionModule(), datamodule=data)
    assert sum(len(batch.contrasts) for batch in batches) == len(ROWS)
    assert [row.row for row in data.rejected] == [4]
    assert "tokens, and the model has 64 positions" in data.rejected[0].reason


def test_works_with_a_module_of_other_people(tokenizer: PreTrainedTokenizerBase):
    data = CounterfactDataModule(ROWS)
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    found = sum(trainer.predict(StrangersModule(tokenizer), datamodule=data), [])
    assert data.contrasts[0].token_ids == tuple(tokenizer(ROWS[0]["prompt"]).input_ids)
    assert {fact_id for fact_id, _ in found} == {0, 1, 2, 3}
    assert max(step for _, step in found) > 0


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_pinned(device_type: str, monkeypatch: pytest.MonkeyPatch):
    data = CounterfactDataModule(ROWS)
    data.setup()
    data.trainer = pl.Trainer(accelerator="cpu", **QUIET)
    # What the strategy has on a machine with GPUs.
    monkeypatch.setattr(type(data.trainer.strategy), "root_device", torch.device(device_type))
    assert data.predict_dataloader().pin_memory == (device_type == "cuda")
