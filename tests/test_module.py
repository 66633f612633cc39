"""The module under real Trainers."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from accelerate import dispatch_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from lit_attr.attribution import AttributionBatch, attribute_batch
from lit_attr.contrasts import Contrast, collate_contrasts
from lit_attr.errors import UserError
from lit_attr.locate import locate
from lit_attr.models import DEMO_MODEL
from lit_attr.module import AttributionModule

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def predict(module: AttributionModule, contrasts: list[Contrast], **trainer) -> list[AttributionBatch]:
    """A stranger's Trainer and DataLoader."""
    loader = DataLoader(contrasts, batch_size=4, collate_fn=collate_contrasts)
    return pl.Trainer(accelerator="cpu", **QUIET, **trainer).predict(module, loader)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_predicts_what_the_core_attributes(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast], inference_mode: bool
):
    module = AttributionModule(model=random_model, layers=[0, -1])
    batches = predict(module, sample_contrasts[:6], inference_mode=inference_mode)
    assert [len(batch.contrasts) for batch in batches] == [4, 2]
    location = locate(random_model, layers=[0, 2])
    for batch, contrasts in zip(batches, (sample_contrasts[:4], sample_contrasts[4:6]), strict=True):
        expected = attribute_batch(random_model, location, collate_contrasts(contrasts))
        torch.testing.assert_close(batch[3:], expected[3:], rtol=0, atol=0)
        assert batch.layers == (0, 2)
        assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in batch[3:])


def test_loads_the_demo_model_by_default(sample_contrasts: list[Contrast]):
    module = AttributionModule()
    assert module.language_model is None
    batches = predict(module, sample_contrasts[:4])
    assert module.model_name == DEMO_MODEL
    assert batches[0].scores_sum_BLT.shape[:2] == (4, module.language_model.config.n_layer)


def test_configure_model_loads_once(model_folder: Path):
    module = AttributionModule(str(model_folder))
    module.configure_model()
    model, location = module.language_model, module.location
    module.configure_model()
    assert module.language_model is model
    assert module.location is location


def test_mixed_precision_changes_no_number(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    module = AttributionModule(model=random_model)
    mixed = predict(module, sample_contrasts[:4], precision="bf16-mixed")
    plain = predict(module, sample_contrasts[:4])
    torch.testing.assert_close(mixed[0][3:], plain[0][3:], rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "16-true"])
def test_the_trainers_precision_does_not_break_it(sample_contrasts: list[Contrast], precision: str):
    batches = predict(AttributionModule(dtype="bfloat16"), sample_contrasts[:4], precision=precision)
    assert batches[0].scores_sum_BLT.isfinite().all()
    assert batches[0].scores_sum_BLT.dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_stays_where_it_was_loaded(sample_contrasts: list[Contrast]):
    module = AttributionModule(quantization="8bit")
    batches = predict(module, sample_contrasts[:4])
    assert batches[0].scores_sum_BLT.abs().sum() > 0
    assert module.identity()["quantization"] == "8bit"
    assert "language_model" not in dict(module.named_children())


def test_identity_tells_models_and_settings_apart(model_folder: Path):
    plain = AttributionModule(str(model_folder)).identity()
    assert plain["layers"] == [0, 1, 2]
    assert plain["dtype"] == "float32"
    assert plain["model_type"] == "gpt2"
    other = AttributionModule(str(model_folder), layers=-1, component="attention", dtype="bfloat16").identity()
    assert {name for name in plain if plain[name] != other[name]} == {"layers", "component", "dtype", "weights"}
    assert AttributionModule().identity()["weights"] != plain["weights"]


def test_refuses_a_name_and_an_object_at_once(random_model: GPT2LMHeadModel):
    with pytest.raises(
        UserError, match="model.model_name: is for a model that is loaded here, and a model object was given"
    ):
        AttributionModule("gpt2", model=random_model)


def test_a_model_in_train_mode_scores_as_in_eval_mode(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]
):
    expected = AttributionModule(model=random_model).predict_step(collate_contrasts(sample_contrasts[:4]), 0)
    random_model.train()
    result = AttributionModule(model=random_model).predict_step(collate_contrasts(sample_contrasts[:4]), 0)
    torch.testing.assert_close(result[3:], expected[3:], rtol=0, atol=0)
    assert all(module.training for module in random_model.modules())


def test_a_model_spread_over_devices_is_not_moved(model_folder: Path, sample_contrasts: list[Contrast]):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    plain = predict(AttributionModule(str(model_folder)), sample_contrasts[:4])
    dispatch_model(model, {"transformer": "cpu", "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    module = AttributionModule(model=model)
    assert "language_model" not in dict(module.named_children())
    batches = predict(module, sample_contrasts[:4])
    torch.testing.assert_close(batches[0].scores_sum_BLT, plain[0].scores_sum_BLT)
