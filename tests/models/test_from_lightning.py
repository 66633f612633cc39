"""Language models inside other Lightning modules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from project import writing_trainer
from strangers import QUIET, StrangersModule, state, tiny
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel, GPT2Model

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import AttributionBatch
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import locate
from lit_attr.module import AttributionModule
from lit_attr.settings import LoadingOptions


def expected(model: GPT2LMHeadModel, batches: list[AttributionBatch]) -> list[AttributionBatch]:
    """The scores of the same batches by the functional core."""
    return [attribute_batch(model, locate(model), collate_contrasts(batch.contrasts)) for batch in batches]


def assert_same(batches: list[AttributionBatch], others: list[AttributionBatch]) -> None:
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.scores_sum_BLT, other.scores_sum_BLT)


@pytest.mark.parametrize("rule", ["gradient", "linearised", "exact"])
@pytest.mark.parametrize("trained", [False, True])
def test_leaves_the_module_as_it_was(rule: str, trained: bool, tmp_path: Path):
    module = StrangersModule()
    if trained:
        module.learn()
    module.lm(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    before = state(module)
    assert any(gradient is not None for gradient in before[1])
    assert len(set(before[3])) == 2
    ours = AttributionModule.from_lightning(module, rule=rule, verify=2)
    trainer = writing_trainer(tmp_path)
    batches = trainer.predict(ours, datamodule=CounterfactDataModule(limit=6))
    assert state(module) == before
    if rule == "gradient":
        assert sum(len(batch.exact) for batch in batches) == 2
        scored = [batch for batch in batches if batch.contrasts]
        assert_same(scored, expected(module.lm, scored))


class Failing(AttributionModule):
    def predict_step(self, *args: Any) -> AttributionBatch:
        super().predict_step(*args)
        raise RuntimeError("on purpose")


def test_leaves_the_module_as_it_was_after_an_error():
    module = StrangersModule()
    before = state(module)
    ours = Failing.from_lightning(module)
    with pytest.raises(RuntimeError, match="on purpose"):
        pl.Trainer(accelerator="cpu", **QUIET).predict(ours, datamodule=CounterfactDataModule(limit=6))
    assert state(module) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("home", ["cpu", "cuda"])
@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_leaves_the_module_on_its_device(home: str, accelerator: str):
    module = StrangersModule().to(home)
    before = state(module)
    ours = AttributionModule.from_lightning(module)
    pl.Trainer(accelerator=accelerator, devices=1, **QUIET).predict(
        ours, datamodule=CounterfactDataModule(limit=6)
    )
    assert state(module) == before


class Elsewhere(SingleDeviceStrategy):
    """Moves the module to another device, with empty weights."""

    def model_to_device(self) -> None:
        self.model.to_empty(device=self.root_device)


def test_is_moved_back_by_a_trainer_that_has_run_no_batch():
    module = StrangersModule()
    module.lm.to("meta")
    settings = {"loading": LoadingOptions(self_test=False), "component": "transformer.h.{layer}.mlp"}
    trainer = pl.Trainer(accelerator="cpu", strategy=Elsewhere("cpu"), limit_predict_batches=0, **QUIET)
    trainer.predict(
        AttributionModule.from_lightning(module, **settings), datamodule=CounterfactDataModule(limit=6)
    )
    assert {parameter.device.type for parameter in module.lm.parameters()} == {"meta"}


@pytest.mark.parametrize("failed", [False, True])
def test_a_later_run_uses_the_current_weights(failed: bool):
    """The rule norm-secant keeps the final norm's weights."""
    module = StrangersModule()
    ours = (Failing if failed else AttributionModule).from_lightning(module, rule="norm-secant")
    data = CounterfactDataModule(limit=6)
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    if failed:
        with pytest.raises(RuntimeError, match="on purpose"):
            trainer.predict(ours, datamodule=data)
        ours.predict_step = super(Failing, ours).predict_step
    else:
        trainer.predict(ours, datamodule=data)
    module.lm.transformer.ln_f.weight.data *= 3
    fresh = AttributionModule.from_lightning(module, rule="norm-secant")
    assert_same(trainer.predict(ours, datamodule=data), trainer.predict(fresh, datamodule=data))


class Pair(StrangersModule):
    """A student, a teacher outside the module tree, and an encoder without a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = GPT2Model(self.lm.config)
        self.teachers = SimpleNamespace(best=tiny(self.tokenizer))


def test_finds_the_language_model_and_the_tokenizer():
    module = Pair()
    for attribute in (None, "lm", "net", "net.lm"):
        ours = AttributionModule.from_lightning(module, attribute)
        assert ours.language_model is module.lm
        assert ours.tokenizer is module.tokenizer
    assert AttributionModule.from_lightning(module, "teachers.best").language_model is module.teachers.best
    assert AttributionModule.from_lightning(module, tokenizer="gpt2").tokenizer == "gpt2"
    del module.tokenizer
    module.lm.config._name_or_path = module.lm.name_or_path = "their/model"
    assert AttributionModule.from_lightning(module, layers=[1]).tokenizer == "their/model"


def test_finds_the_compiled_language_model():
    module = StrangersModule()
    language_model = module.lm
    module.net["lm"] = torch.compile(language_model, backend="eager")
    assert AttributionModule.from_lightning(module).language_model is language_model


def test_finds_an_adapter_with_its_wrapper(sample_contrasts: list[Contrast]):
    module = StrangersModule()
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, fan_in_fan_out=True)
    module.net["lm"] = get_peft_model(module.lm, config)
    before = state(module)
    ours = AttributionModule.from_lightning(module)
    assert ours.language_model is module.lm
    assert ours.identity()["adapters"] == {"default": "LORA"}
    loader = DataLoader(sample_contrasts[:4], batch_size=4, collate_fn=collate_contrasts)
    batches = pl.Trainer(accelerator="cpu", **QUIET).predict(ours, loader)
    assert state(module) == before
    assert_same(batches, expected(module.lm, batches))
    # The virtual tokens of prompt tuning are in the wrapper alone.
    module.net["lm"] = get_peft_model(
        tiny(module.tokenizer), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(UserError, match=r"its adapter adds virtual tokens before every prompt"):
        AttributionModule.from_lightning(module).configure_model()


class Two(StrangersModule):
    def __init__(self) -> None:
        super().__init__()
        self.net["teacher"] = tiny(self.tokenizer)


class Strange(StrangersModule):
    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = lambda text: [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("module", "attribute", "message"),
    [
        (Two, None, r"^attribute: Two holds 2 .* \(net.lm, net.teacher\), not one; name its attribute$"),
        (StrangersModule, "critic", r"^attribute: critic holds 0 language models .* not one; name its attribute$"),
        (StrangersModule, "net.x", "^attribute: .* has no attribute 'x'; check the path$"),
        (Strange, None, "^tokenizer: function is not a tokenizer of transformers; give one, or its name$"),
    ],
)
def test_reports_mistakes(module: type[StrangersModule], attribute: str | None, message: str):
    with pytest.raises(UserError, match=message):
        AttributionModule.from_lightning(module(), attribute)
