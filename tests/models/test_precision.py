"""The agreement of each number format's scores with float32, and their dependence on the batch.

`python tests/models/test_precision.py` prints the dependence on the batch; `scripts/compare_formats.py` makes the
tables of formats.

Axes: B contrasts, L layers, T tokens.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from project import writing_trainer
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr import AttributionModule, CounterfactDataModule, errors
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models import loading
from lit_attr.models.loading import DEMO_MODEL, lacks_bfloat16, load_model, load_tokenizer
from lit_attr.models.location import locate

FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "8-bit": {"quantization": "8bit"},
    "4-bit (NF4)": {"quantization": "4bit"},
}


class Agreement(NamedTuple):
    """The agreement of scores in a number format with those in float32.

    Attributes:
        pearson: Correlation over all contrasts, layers and tokens.
        norm_ratio: Their l2 norm over that of the scores in float32.
        largest_error: The largest difference, relative to the contrast's largest score.
        largest_error_in_layer: The same, relative to the largest score of the contrast in that layer. A weak
            measure, since all scores of a layer may be close to 0.
    """

    pearson: float
    norm_ratio: float
    largest_error: float
    largest_error_in_layer: float


# Several times the measured values, since kernels differ between processors.
WORST = {
    "bfloat16": Agreement(0.9995, 0.01, 0.2, 4),
    "float16": Agreement(0.99995, 0.001, 0.02, 0.5),
    "8-bit": Agreement(0.9995, 0.01, 0.2, 5),
    "4-bit (NF4)": Agreement(0.97, 0.05, 1.0, 50),
}


def sample() -> list[Contrast]:
    """Every fourth fact of the shipped sample."""
    facts = read_facts(open_rows(SAMPLE)).facts
    return build_contrasts(facts, load_tokenizer(DEMO_MODEL))[0][::4]


def mixed_lengths() -> list[Contrast]:
    """A batch with much padding: attention uses another kernel for longer rows."""
    return sorted(sample(), key=lambda contrast: -len(contrast.token_ids))[::4]


def scores_BLT(model: PreTrainedModel, contrasts: list[Contrast]) -> Tensor:
    return attribute_batch(model, locate(model), collate_contrasts(contrasts)).scores_sum_BLT


def measure() -> dict[str, Agreement]:
    """The demo model's agreement in each format."""
    contrasts = sample()
    exact_BLT = scores_BLT(load_model(DEMO_MODEL), contrasts)
    largest_BL = exact_BLT.abs().amax(2)
    agreements = {}
    for name, settings in FORMATS.items():
        other_BLT = scores_BLT(load_model(DEMO_MODEL, **settings), contrasts)
        error_BL = (other_BLT - exact_BLT).abs().amax(2)
        agreements[name] = Agreement(
            pearson=float(torch.corrcoef(torch.stack([exact_BLT.flatten(), other_BLT.flatten()]))[0, 1]),
            norm_ratio=float(other_BLT.norm() / exact_BLT.norm()),
            largest_error=float((error_BL.amax(1) / largest_BL.amax(1)).max()),
            largest_error_in_layer=float((error_BL / largest_BL).max()),
        )
    return agreements


def batch_errors_B(model: PreTrainedModel, contrasts: list[Contrast]) -> Tensor:
    """The error of each row's scores in a batch against the row alone, relative to its largest score."""
    location = locate(model)
    together_BLT = attribute_batch(model, location, collate_contrasts(contrasts)).scores_sum_BLT
    errors = []
    for row_LT, contrast in zip(together_BLT, contrasts, strict=True):
        (alone_LT,) = attribute_batch(model, location, collate_contrasts([contrast])).scores_sum_BLT
        errors.append((row_LT[:, : alone_LT.shape[1]] - alone_LT).abs().max() / alone_LT.abs().max())
    return torch.stack(errors)


def save_with_outliers(folder: Path) -> str:
    """The demo model with a few outlier features, as large language models have them."""
    model = load_model(DEMO_MODEL)
    with torch.no_grad():
        for block in model.transformer.h:
            block.ln_1.weight[:4] *= 8
            block.ln_2.weight[:4] *= 8
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def agreements() -> dict[str, Agreement]:
    return measure()


@pytest.mark.parametrize("name", FORMATS)
def test_formats_agree_with_float32(agreements: dict[str, Agreement], name: str):
    found, worst = agreements[name], WORST[name]
    assert worst.pearson < found.pearson < 1
    assert abs(found.norm_ratio - 1) < worst.norm_ratio
    assert 0 < found.largest_error < worst.largest_error
    assert found.largest_error_in_layer < worst.largest_error_in_layer


def test_a_row_does_not_depend_on_its_batch_in_float32(demo_model: PreTrainedModel):
    assert batch_errors_B(demo_model, mixed_lengths()).max() < 1e-4


def test_a_row_depends_little_on_its_batch_in_bfloat16():
    errors_B = batch_errors_B(load_model(DEMO_MODEL, dtype="bfloat16"), mixed_lengths())
    assert errors_B.median() < 0.05
    assert errors_B.max() < 0.3


def test_a_threshold_of_0_makes_8bit_rows_independent_of_their_batch(tmp_path: Path):
    folder, contrasts = save_with_outliers(tmp_path), mixed_lengths()
    split_B, whole_B = (
        batch_errors_B(load_model(folder, quantization="8bit", llm_int8_threshold=threshold), contrasts)
        for threshold in (None, 0)
    )
    assert split_B.median() > 0.005
    # A feature on the border between two of the 255 steps may still round either way, in a row or two.
    assert whole_B.median() < 1e-4
    assert whole_B.max() < split_B.median() * 5


@pytest.mark.parametrize(
    ("listed", "lacks"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd sve i8mm bf16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", True),
        # The words of another line are no instructions.
        ("processor\t: 0\nbugs\t\t: spectre_v1\n", False),
    ],
)
def test_a_cpu_without_bfloat16_is_recognised(tmp_path: Path, listed: str, lacks: bool):
    (tmp_path / "cpuinfo").write_text(listed)
    assert lacks_bfloat16(tmp_path / "cpuinfo") == lacks
    assert not lacks_bfloat16(tmp_path / "absent")


@pytest.mark.parametrize(("flags", "lines"), [("avx2", 1), ("avx2 avx512_bf16", 0)])
def test_bfloat16_on_a_cpu_without_it_gets_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    flags: str,
    lines: int,
):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(loading, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(errors, "_logged", set())
    for dtype in ("float32", "bfloat16", "bfloat16"):
        load_model(DEMO_MODEL, dtype=dtype, device=torch.device("cpu"))
    found = [record.getMessage() for record in caplog.records if record.name == "lit_attr"]
    assert len(found) == lines
    assert all(line.startswith("dtype: this CPU has no instructions for bfloat16; ") for line in found)


@pytest.mark.parametrize("settings", [FORMATS["bfloat16"], {**FORMATS["8-bit"], "dtype": "bfloat16"}])
def test_a_run_is_not_continued_with_other_batches(tmp_path: Path, settings: dict[str, Any]):
    """Scores in these formats depend on the batch."""

    def predict(**bounds: int) -> None:
        module = AttributionModule(verify=0, **settings)
        data = CounterfactDataModule(limit=6, **bounds)
        writing_trainer(tmp_path, max_heatmaps=0).predict(module, datamodule=data, return_predictions=False)

    predict(batch_size=4)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    assert (manifest["data"]["batch_size"], manifest["data"]["max_tokens"]) == (4, None)
    for bounds, name in (({"batch_size": 3}, "batch_size"), ({"batch_size": 4, "max_tokens": 64}, "max_tokens")):
        with pytest.raises(UserError, match=rf"was written with data\.{name} \w+, this run has .* another folder"):
            predict(**bounds)
    predict(batch_size=4)


def print_batch_errors() -> None:
    """The error of a row in a batch against the row alone, in each format."""
    whole = {"quantization": "8bit", "llm_int8_threshold": 0}
    with tempfile.TemporaryDirectory() as folder:
        for name in (DEMO_MODEL, save_with_outliers(Path(folder))):
            for settings in ({}, *FORMATS.values(), whole, {**whole, "dtype": "bfloat16"}):
                errors_B = batch_errors_B(load_model(name, **settings), mixed_lengths())
                which = "demo" if name == DEMO_MODEL else "demo with outliers"
                print(f"{which} {settings}: median {errors_B.median():.2g}, largest {errors_B.max():.2g}")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print_batch_errors()
