"""What the settings of an adaptive run allow, and how one that cannot keep its promise ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from project import writing_trainer
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from lit_attr.attribution.error_model import Targets
from lit_attr.cli import main
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.module import AttributionModule
from lit_attr.sampling.pilot import check_targets
from lit_attr.settings import LoadingOptions

# A model that refuses to run without gradients, as exact effects do.
NEEDS_GRADIENTS = """
import torch
from transformers import GPT2LMHeadModel

class Model(GPT2LMHeadModel):
    def forward(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            raise RuntimeError("no gradients,\\n no answer")
        return super().forward(*args, **kwargs)
"""


def run(folder: Path, limit: int = 12, **settings: Any) -> dict[str, Any]:
    data = CounterfactDataModule(limit=limit, batch_size=8)
    module = AttributionModule(**{"min_agreement": 0.9, "pilot": 5, "verify": 0, **settings})
    trainer = writing_trainer(folder, max_heatmaps=0)
    trainer.predict(module, datamodule=data, return_predictions=False)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_bytes())
    return summary


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"min_agreement": 0.0}, "min_agreement: 0.0 is not between 0 and 1, such as 0.95"),
        ({"min_agreement": 1.0}, "min_agreement: 1.0 is not between 0 and 1, such as 0.95"),
        ({"min_agreement": float("nan")}, "min_agreement: nan is not between 0 and 1, such as 0.95"),
        (
            {"min_agreement": 0.9, "min_agreement_by_layer": 1.2},
            "min_agreement_by_layer: 1.2 is not between 0 and 1, such as 0.95",
        ),
        ({"min_agreement": 0.9, "pilot": 3}, "pilot: 3 is less than 4; give 4 or more"),
        ({"max_cost": 3.0}, "max_cost: it bounds what min_agreement costs; set that as well"),
        (
            {"min_agreement": 0.9, "max_cost": 1.0},
            "max_cost: 1.0 leaves nothing for exact effects: the estimates cost 1; give more",
        ),
        (
            {"min_agreement": 0.9, "max_cost": 2.0, "rule": "norm-secant"},
            "max_cost: 2.0 leaves nothing for exact effects: the estimates cost 2; give more",
        ),
        ({"min_agreement": 0.9, "max_cost": float("inf")}, "max_cost: inf is not a bound; leave it out"),
        (
            {"min_agreement": 0.9, "rule": "exact"},
            "min_agreement: every score of the rule exact is exact; leave it out",
        ),
    ],
)
def test_settings_that_make_no_promise_are_refused_in_one_line(settings: dict[str, Any], line: str):
    with pytest.raises(UserError) as refused:
        AttributionModule(**settings)
    assert str(refused.value) == f"model.{line}"


def test_the_bound_is_what_the_estimates_leave():
    assert check_targets(None, 0.8, 16, None, rule="gradient") is None
    assert check_targets(0.9, None, 16, 3.5, rule="gradient") == Targets(0.9, None, 2.5)
    assert check_targets(0.9, 0.8, 16, 3.5, rule="linearised") == Targets(0.9, 0.8, 1.5)


def test_needs_a_writer_and_a_data_module_that_knows_the_order(sample_contrasts: list[Contrast], tmp_path: Path):
    module = AttributionModule(min_agreement=0.9)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    with pytest.raises(UserError, match=r"^model\.min_agreement: it needs an AttributionWriter among trainer"):
        trainer.predict(module, datamodule=CounterfactDataModule(limit=9))
    loader = DataLoader(sample_contrasts[:6], batch_size=2, collate_fn=collate_contrasts)
    with pytest.raises(UserError, match=r"^model\.min_agreement: its pilot needs a CounterfactDataModule; use"):
        writing_trainer(tmp_path).predict(module, loader)


def test_a_model_without_exact_effects_ends_in_one_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    (model_folder / "needs_gradients.py").write_text(NEEDS_GRADIENTS)
    config = json.loads((model_folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "needs_gradients.Model"}
    (model_folder / "config.json").write_text(json.dumps(config))
    words = f"--model.model_name {model_folder} --model.loading.trust_remote_code true --data.limit 8"
    words += f" --model.loading.self_test false --writer.output_dir {tmp_path / 'out'} --trainer.accelerator cpu"
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *words.split(), "--model.min_agreement", "0.9", "--trainer.enable_progress_bar", "false"])
    error = capfd.readouterr().err
    assert stopped.value.code == 1
    assert "Traceback" not in error
    assert [line for line in error.splitlines() if "error:" in line] == [
        "lit-attr: error: model.min_agreement: this model's exact effects cannot be computed (no gradients, no "
        "answer); leave it out"
    ]


def test_a_cost_that_the_promise_exceeds_is_warned_of_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    adaptive = run(tmp_path / "bounded", min_agreement=0.97, max_cost=1.01)["adaptive"]
    (line,) = [record.getMessage() for record in caplog.records if "max_cost" in record.getMessage()]
    assert line.startswith(
        f"model.max_cost: within it, r = {adaptive['expected']:.2f} is expected instead of 0.97"
    )
    assert "\n" not in line
    assert adaptive["expected"] < 0.97
    # On average over the pilot; the other contrasts have other lengths.
    assert adaptive["exact_cost"] < 0.1
    assert run(tmp_path / "free", min_agreement=0.97)["adaptive"]["expected"] > 0.97


@pytest.mark.parametrize("limit", [3, 5])
def test_a_pilot_as_large_as_the_data_is_all_exact(limit: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        summary = run(tmp_path, limit, verify=4)
    lines = [record.getMessage() for record in caplog.records if "pilot" in record.getMessage()]
    assert lines == (["The pilot is all 3 contrasts: every score is an exact effect."] if limit == 3 else [])
    assert not (tmp_path / "error_model.json").exists()
    assert summary["contrasts"] == len([*tmp_path.glob("exact/*.json")]) == limit
    assert (summary["adaptive"]["exact_share"], summary["agreement"]) == (None, None)


def test_tokens_contrasted_with_themselves_need_no_error_model(tmp_path: Path):
    """Each fact has a step at which its tokens differ, and steps at which they are the same."""
    row = {"prompt": "The capital of Spain is", "subject": "Spain", "target_true": "Madrid", "relation_id": "P36"}
    rows = [{**row, "target_false": target} for target in ("Manila", "Malta", "Mali")]
    data = CounterfactDataModule(rows, step="all")
    module = AttributionModule(min_agreement=0.9, verify=0)
    writing_trainer(tmp_path, max_heatmaps=0).predict(module, datamodule=data, return_predictions=False)
    examples = [
        example
        for path in tmp_path.glob("batches/*.json")
        for example in json.loads(path.read_bytes())["examples"]
    ]
    same = [example for example in examples if example["true_token_id"] == example["false_token_id"]]
    assert same and len(same) < len(examples) == len(data.contrasts)
    assert not any(any(row) for example in same for row in example["is_exact"]["mlp"])
    assert all(all(row) for example in examples if example not in same for row in example["is_exact"]["mlp"])


def test_a_pilot_without_finite_effects_ends_in_one_line(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    """The first MLP writes all of the residual stream, and without it the next norm divides 0 by 0."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_layer=2, n_embd=16, n_head=2, n_positions=64, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config).eval()
    first, second = model.transformer.h
    with torch.no_grad():
        for zero in (model.transformer.wte, model.transformer.wpe, first.attn.c_proj):
            zero.weight.zero_()
        torch.nn.init.normal_(first.ln_2.bias)
    second.ln_1.eps = 0.0
    loading = LoadingOptions(self_test=False)
    module = AttributionModule(model=model, tokenizer=tokenizer, loading=loading, min_agreement=0.9, pilot=5)
    with pytest.raises(UserError) as refused:
        writing_trainer(tmp_path).predict(module, datamodule=CounterfactDataModule(limit=9))
    assert str(refused.value) == (
        "model.min_agreement: the pilot has 0 contrasts with finite scores and exact effects, fewer than 4; give "
        "more facts, or the dtype float32"
    )
    refusals = [json.loads(path.read_bytes())["refused"] for path in tmp_path.glob("exact/*.json")]
    assert refusals == ["its exact effects are not finite; the dtype float32 may fix it"] * 5
