"""The module under real Trainers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from accelerate import dispatch_model
from lightning.pytorch.plugins.precision import BitsandbytesPrecision
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    CodeGenConfig,
    CodeGenForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
)

from lit_attr import errors
from lit_attr.attribution.catalogue import RuleOptions
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import AttributionBatch
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.language_model import is_spread
from lit_attr.models.loading import DEMO_MODEL, Dtype, load_model
from lit_attr.models.location import locate
from lit_attr.module import AttributionModule
from lit_attr.settings import LoadingOptions

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def predict(module: AttributionModule, contrasts: list[Contrast], **trainer) -> list[AttributionBatch]:
    """Predicts with a plain Trainer and DataLoader."""
    loader = DataLoader(contrasts, batch_size=4, collate_fn=collate_contrasts)
    return pl.Trainer(accelerator="cpu", **QUIET, **trainer).predict(module, loader)


def assert_same(batches: list[AttributionBatch], expected: list[AttributionBatch]) -> None:
    """Scores and answers are the same to the bit."""
    for batch, other in zip(batches, expected, strict=True):
        torch.testing.assert_close(numbers(batch), numbers(other), rtol=0, atol=0)


def numbers(batch: AttributionBatch) -> list[torch.Tensor | None]:
    """All tensors of a batch, without its exact effects."""
    return [*batch[4 : batch._fields.index("exact")]]


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
        torch.testing.assert_close(numbers(batch), numbers(expected), rtol=0, atol=0)
        assert batch.layers == (0, 2)
        assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in numbers(batch))


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"])
def test_the_trainers_precision_changes_no_number(
    model_folder: Path, sample_contrasts: list[Contrast], precision: str, dtype: Dtype
):
    plain = predict(AttributionModule(str(model_folder), dtype=dtype), sample_contrasts[:4])
    module = AttributionModule(str(model_folder), dtype=dtype)
    assert_same(predict(module, sample_contrasts[:4], precision=precision), plain)
    assert module.identity()["dtype"] == dtype
    model = load_model(str(model_folder), dtype=dtype, device=torch.device("cpu"))
    assert_same(predict(AttributionModule(model=model), sample_contrasts[:4], precision=precision), plain)
    assert model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("precision", ["64-true", "16-true", "bf16-true"])
def test_the_trainers_precision_changes_no_position_table(
    tokenizer: PreTrainedTokenizerBase, sample_contrasts: list[Contrast], tmp_path: Path, precision: str
):
    # On loading, this model computes the sines of its positions in the default number format.
    config = CodeGenConfig(vocab_size=len(tokenizer), n_layer=2, n_embd=64, n_head=4, rotary_dim=8, n_positions=64)
    CodeGenForCausalLM(config).save_pretrained(tmp_path)
    settings = {"model_name": str(tmp_path), "component": "block"}
    plain = predict(AttributionModule(**settings), sample_contrasts[:4])
    assert_same(predict(AttributionModule(**settings), sample_contrasts[:4], precision=precision), plain)


class ThirdOfDefaultDtype(torch.nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.full((), 1 / 3)


@pytest.mark.parametrize("precision", ["64-true", "16-true", "bf16-true"])
def test_the_trainers_precision_changes_no_tensor_made_in_the_forward_pass(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast], precision: str
):
    random_model.transformer.h[1].mlp.act = ThirdOfDefaultDtype()
    plain = predict(AttributionModule(model=random_model), sample_contrasts[:4])
    assert_same(predict(AttributionModule(model=random_model), sample_contrasts[:4], precision=precision), plain)


def test_moves_with_the_module_but_keeps_its_number_format(random_model: GPT2LMHeadModel):
    module = AttributionModule(model=random_model)
    module.to("meta", torch.bfloat16)
    assert {(parameter.device.type, parameter.dtype) for parameter in random_model.parameters()} == {
        ("meta", torch.float32)
    }


def test_refuses_a_trainer_that_would_replace_layers_of_the_model(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]
):
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    # Neither the plugin nor a Trainer with it can be created without a GPU.
    trainer.strategy.precision_plugin = BitsandbytesPrecision.__new__(BitsandbytesPrecision)
    trainer.precision_plugin.dtype, trainer.precision_plugin.ignore_modules = torch.float16, set()
    trainer.precision_plugin._linear_cls = torch.nn.Linear
    loader = DataLoader(sample_contrasts[:4], batch_size=4, collate_fn=collate_contrasts)
    with pytest.raises(UserError, match=r"trainer.plugins: BitsandbytesPrecision would .* set model.quantization"):
        trainer.predict(AttributionModule(model=random_model), loader)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The warnings of lit-attr in this test, which starts like a new process."""
    monkeypatch.setattr(errors, "_logged", set())
    return lambda: [record.getMessage() for record in caplog.records if record.name == "lit_attr"]


@pytest.mark.parametrize("loaded", [False, True])
def test_warns_once_about_float16(random_model: GPT2LMHeadModel, warned: Callable[[], list[str]], loaded: bool):
    for _ in range(2):
        AttributionModule(model=random_model)
        assert len(warned()) == 0
    for _ in range(2):
        load_model(DEMO_MODEL, dtype="float16") if loaded else AttributionModule(model=random_model.half())
    # The module names its own setting, the function its argument.
    name = "dtype" if loaded else "model.dtype"
    assert warned() == [f"{name}: gradients can underflow to 0 in float16; bfloat16 is the safer half precision"]


def test_only_the_first_process_warns(
    random_model: GPT2LMHeadModel, warned: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "1")
    AttributionModule(model=random_model.half())
    assert warned() == []


def test_warns_once_about_a_precision_without_effect(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast], warned: Callable[[], list[str]]
):
    predict(AttributionModule(model=random_model), sample_contrasts[:8])
    assert warned() == []
    for _ in range(2):
        predict(AttributionModule(model=random_model), sample_contrasts[:8], precision="bf16-true")
    assert warned() == ["trainer.precision: bf16-true has no effect here; set model.dtype instead"]


def test_a_quantised_model_stays_where_it_was_loaded(sample_contrasts: list[Contrast]):
    module = AttributionModule(quantization="8bit")
    batches = predict(module, sample_contrasts[:4])
    assert batches[0].scores_sum_BLT.abs().sum() > 0
    assert "language_model" not in dict(module.named_children())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"load_in_8bit": True}, {"quantization": "8bit", "llm_int8_threshold": 6.0}),
        ({"load_in_8bit": True, "llm_int8_threshold": 0.0}, {"quantization": "8bit", "llm_int8_threshold": 0.0}),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
            {"quantization": "4bit", "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
        ),
        ({"load_in_4bit": True}, {"quantization": "4bit", "bnb_4bit_quant_type": "fp4"}),
    ],
)
def test_identity_says_how_a_model_was_quantised(config: dict[str, Any], expected: dict[str, Any]):
    model = AutoModelForCausalLM.from_pretrained(
        DEMO_MODEL, quantization_config=BitsAndBytesConfig(**config), device_map={"": "cpu"}
    )
    identity = AttributionModule(model=model).identity()
    assert identity.items() >= {**expected, "gradient": "through dequantised weights"}.items()
    json.dumps(identity)


def test_identity_has_the_threshold_that_was_set():
    default, none = (
        AttributionModule(quantization="8bit"),
        AttributionModule(quantization="8bit", loading=LoadingOptions(llm_int8_threshold=0)),
    )
    assert default.identity()["llm_int8_threshold"] == 6
    assert none.identity()["llm_int8_threshold"] == 0


def test_identity_distinguishes_models_and_settings(model_folder: Path):
    plain = AttributionModule(str(model_folder)).identity()
    assert plain["layers"] == [0, 1, 2]
    assert plain["dtype"] == "float32"
    assert plain["model_type"] == "gpt2"
    other = AttributionModule(str(model_folder), layers=-1, component="attention", dtype="bfloat16").identity()
    assert {name for name in plain if plain[name] != other[name]} == {
        "layers",
        "component",
        "module",
        "dtype",
        "weights",
    }
    assert AttributionModule().identity()["weights"] != plain["weights"]


def test_refuses_a_name_beside_an_object(random_model: GPT2LMHeadModel):
    with pytest.raises(
        UserError, match="model.model_name: it is for a model that is loaded here, and a model object was given"
    ):
        AttributionModule("gpt2", model=random_model)


def test_a_model_in_train_mode_scores_as_in_eval_mode(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]
):
    expected = AttributionModule(model=random_model).predict_step(collate_contrasts(sample_contrasts[:4]), 0)
    random_model.train()
    result = AttributionModule(model=random_model).predict_step(collate_contrasts(sample_contrasts[:4]), 0)
    torch.testing.assert_close(numbers(result), numbers(expected), rtol=0, atol=0)
    assert all(module.training for module in random_model.modules())


HALF_ON_DISK = {
    "transformer.wte": "cpu",
    "transformer.wpe": "cpu",
    "transformer.h.0": "cpu",
    "transformer.h.1": "disk",
    "transformer.h.2": "disk",
    "transformer.ln_f": "disk",
    "lm_head": "cpu",
}
SPREAD_REFUSED = "model.device_map: a model spread over devices runs in one process; set trainer.devices: 1"


@pytest.mark.parametrize("device_map", ["auto", HALF_ON_DISK, {"": "disk"}])
def test_a_spread_model_scores_as_on_one_device(
    model_folder: Path, sample_contrasts: list[Contrast], device_map: str | dict[str, str]
):
    plain, spread = (
        AttributionModule(str(model_folder)),
        AttributionModule(str(model_folder), device_map=device_map),
    )
    assert_same(predict(spread, sample_contrasts[:6]), predict(plain, sample_contrasts[:6]))
    assert spread.identity() == plain.identity()
    assert is_spread(spread.language_model) == (device_map != "auto")


def test_a_dispatched_model_is_not_moved(model_folder: Path, sample_contrasts: list[Contrast]):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    plain = predict(AttributionModule(str(model_folder)), sample_contrasts[:4])
    dispatch_model(model, {"transformer": "cpu", "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    module = AttributionModule(model=model)
    assert "language_model" not in dict(module.named_children())
    assert_same(predict(module, sample_contrasts[:4]), plain)


def test_several_processes_cannot_share_a_spread_model(model_folder: Path, sample_contrasts: list[Contrast]):
    if torch.cuda.is_initialized():
        pytest.skip("a process that has used a GPU cannot fork")
    model = AutoModelForCausalLM.from_pretrained(model_folder, device_map=HALF_ON_DISK)
    for module in (AttributionModule(model=model), AttributionModule(str(model_folder), device_map="auto")):
        with pytest.raises(ProcessRaisedException, match=SPREAD_REFUSED):
            predict(module, sample_contrasts[:4], devices=2, strategy="ddp_fork")


def test_the_command_line_refuses_several_processes_in_one_line(tmp_path: Path):
    words = "predict --model.device_map auto --trainer.devices 2 --trainer.strategy ddp --trainer.accelerator cpu"
    done = subprocess.run(
        [sys.executable, "-m", "lit_attr", *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    (printed,) = (line for line in done.stderr.splitlines() if "rror" in line)
    assert printed == f"lit-attr: error: {SPREAD_REFUSED}"
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_warns_where_the_self_test_is_skipped(
    model_folder: Path, sample_contrasts: list[Contrast], warned: Callable[[], list[str]]
):
    tested, skipped = (
        AttributionModule(str(model_folder)),
        AttributionModule(str(model_folder), loading=LoadingOptions(self_test=False)),
    )
    (batch,), (expected,) = (predict(module, sample_contrasts[:4]) for module in (skipped, tested))
    torch.testing.assert_close(numbers(batch), numbers(expected))
    assert warned() == [
        "model.loading.self_test: it is skipped, so nothing shows that the scored output is what the mlp adds to "
        "the residual stream"
    ]
    assert (tested.identity()["self_test"], skipped.identity()["self_test"]) == (True, False)
    assert tested.identity()["module"] == "transformer.h.{layer}.mlp"


def test_two_models_in_two_threads_keep_their_scores(
    tokenizer: PreTrainedTokenizerBase, sample_contrasts: list[Contrast]
):
    """The first pass begins before the second one and ends while that is in its forward pass."""
    modules = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_layer=3, n_embd=32, n_head=2, n_positions=64, initializer_range=0.3
        )
        options = RuleOptions(frozen_attention=seed == 0)
        model = GPT2LMHeadModel(config).eval()
        modules.append(AttributionModule(model=model, rule="linearised", rule_options=options))
    batch = collate_contrasts(sample_contrasts[:4])
    alone = [module.predict_step(batch, 0) for module in modules]
    second_has_begun, first_has_ended = threading.Event(), threading.Event()

    def begin_second(*_: Any) -> None:
        second_has_begun.set()
        assert first_has_ended.wait(60)

    def attribute(place: int) -> AttributionBatch:
        return modules[place].predict_step(batch, 0)

    embeddings = [module.language_model.get_input_embeddings() for module in modules]
    embeddings[0].register_forward_hook(lambda *_: second_has_begun.wait(60) and None)
    embeddings[1].register_forward_hook(begin_second)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(attribute, place) for place in (0, 1)]
        running[0].add_done_callback(lambda _: first_has_ended.set())
        together = [each.result() for each in running]
    assert second_has_begun.is_set() and first_has_ended.is_set()
    assert_same(together, alone)
