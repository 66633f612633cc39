"""The run's sample: random over the whole run, and the same however the run is done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from project import COUNTERFACT, SHARED_DATA, writing_trainer
from runs import launch
from scipy.stats import ks_2samp
from transformers import GPT2LMHeadModel, GPT2TokenizerFast, PreTrainedTokenizerBase

from lit_attr.attribution.comparison import ExactEffects
from lit_attr.datamodule import CounterfactDataModule, DataRequirements
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.module import AttributionModule
from lit_attr.records.state import RunState
from lit_attr.sample import FirstSeen, compare_or_replace

SCRIPT = str(Path(__file__).parent / "support" / "predict_shares.py")


def compared(data: CounterfactDataModule) -> Iterator[Contrast]:
    """The contrasts whose exact effects the loader asks for."""
    for batch in data.predict_dataloader():
        if batch.comparison is not None:
            yield batch.contrasts[0]


@pytest.mark.slow
@pytest.mark.skipif(not COUNTERFACT.is_file(), reason="the real facts are not on this machine")
@pytest.mark.parametrize("seed", range(5))
def test_the_sample_has_the_prompt_lengths_of_the_whole_run(seed: int):
    data = CounterfactDataModule(str(COUNTERFACT), limit=5000)
    tokenizer = GPT2TokenizerFast.from_pretrained(SHARED_DATA / "gpt2-tokenizer")
    data.make_contrasts(DataRequirements(tokenizer=tokenizer, verify=64, sample_seed=seed))
    sample = [*compared(data)]
    assert len({contrast.key for contrast in sample}) == 64
    lengths = [len(contrast.token_ids) for contrast in data.contrasts]
    assert ks_2samp([len(contrast.token_ids) for contrast in sample], lengths).pvalue > 0.01


def test_another_seed_gives_another_sample():
    data = CounterfactDataModule(SAMPLE)
    samples = []
    for seed in (0, 1, 0):
        data.make_contrasts(DataRequirements(tokenizer=DEMO_MODEL, verify=16, sample_seed=seed))
        samples.append([contrast.key for contrast in compared(data)])
    assert samples[0] == samples[2] != samples[1]


def test_a_larger_sample_contains_the_smaller_one():
    data = CounterfactDataModule(SAMPLE)
    keys = {}
    for verify in (16, 32):
        data.make_contrasts(DataRequirements(tokenizer=DEMO_MODEL, verify=verify))
        keys[verify] = [contrast.key for contrast in compared(data)]
    assert keys[32][:16] == keys[16]


@pytest.mark.slow
def test_one_two_and_three_processes_have_the_same_sample(tmp_path: Path):
    found = {}
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        words = [SCRIPT, str(folder), "60"]
        if processes > 1:
            words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *words]
        environment = {"LOCAL_WORLD_SIZE": str(processes)}
        with launch(words, tmp_path / "log", environment=environment) as run:
            assert run.wait(240) == 0, (tmp_path / "log").read_text()
        found[processes] = {path.name: path.read_bytes() for path in folder.glob("60/exact/*.json")}
    assert len(found[1]) == 16
    assert found[1] == found[2] == found[3]


@pytest.fixture
def broken_at_first_places(random_model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """A model whose logits overflow where the prompt has a token of the two first contrasts of the order."""
    # The embedding alone, which the unembedding shares otherwise.
    random_model.lm_head.weight = torch.nn.Parameter(random_model.lm_head.weight.detach().clone())
    data = CounterfactDataModule(ROWS, tokenizer)
    data.make_contrasts(DataRequirements(verify=2))
    for contrast in compared(data):
        with torch.no_grad():
            random_model.transformer.wte.weight[contrast.token_ids[contrast.subject_span[0]]] = torch.inf
    return random_model


ROWS = [*open_rows(SAMPLE)][::40]


def test_contrasts_that_are_not_finite_are_replaced(broken_at_first_places: GPT2LMHeadModel, tmp_path: Path):
    module = AttributionModule(model=broken_at_first_places, verify=4)
    trainer = writing_trainer(tmp_path)
    trainer.predict(module, datamodule=CounterfactDataModule(ROWS, DEMO_MODEL), return_predictions=False)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("exact/*.json")]
    places = sorted(record["place"] for record in records if record["refused"] is None)
    assert len(places) == 4
    assert {record["place"] for record in records if record["refused"] is not None} >= {0, 1}
    assert max(places) > 3
    # None between the first place and the last is left out.
    assert sorted(record["place"] for record in records) == [*range(max(places) + 1)]
    assert json.loads((tmp_path / "summary.json").read_text())["agreement"]["contrasts"] == 4


def effects(contrast: Contrast, place: int | None, *, refused: bool) -> ExactEffects:
    reason = "not finite" if refused else None
    return ExactEffects(contrast, place, (0,), "mlp", torch.zeros(1, len(contrast.tokens)), None, reason)


def test_a_replacement_that_is_not_finite_is_replaced_as_well(sample_contrasts: list[Contrast]):
    state = RunState(spares=[(place, sample_contrasts[place]) for place in (5, 6, 7)])
    found = compare_or_replace(
        sample_contrasts[0], 2, lambda each, place: effects(each, place, refused=place != 6), state
    )
    assert [each.place for each in found] == [2, 5, 6]


def test_the_first_seen_skip_those_that_have_exact_effects(sample_contrasts: list[Contrast]):
    first, second, third, fourth = sample_contrasts[:4]
    state = RunState(exact={first.key: True, second.key: False})
    seen = FirstSeen(2)
    found = seen.compare([first, second, third, fourth], lambda *each: effects(*each, refused=False), state)
    assert [each.contrast for each in found] == [third]
