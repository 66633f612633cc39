"""Loading, by name, folder and number format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from lit_attr.attribution import attribute_batch
from lit_attr.contrasts import Contrast, collate_contrasts
from lit_attr.errors import UserError
from lit_attr.locate import locate
from lit_attr.models import DEMO_MODEL, fingerprint, is_placed, load_model, load_tokenizer


def test_loads_a_folder_in_eval_mode(model_folder: Path, random_model: GPT2LMHeadModel):
    model = load_model(str(model_folder))
    assert not model.training
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.state_dict(), random_model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loads_in_half_precision(model_folder: Path, dtype: str):
    assert load_model(str(model_folder), dtype=dtype).dtype == getattr(torch, dtype)


def test_auto_takes_the_dtype_of_the_checkpoint(random_model: GPT2LMHeadModel, tmp_path: Path):
    random_model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_scores_go_with_the_full_ones(sample_contrasts: list[Contrast], quantization: str):
    batch = collate_contrasts(sample_contrasts[::15])
    full = load_model(DEMO_MODEL)
    quantised = load_model(DEMO_MODEL, quantization=quantization)
    assert is_placed(quantised)
    assert not is_placed(full)
    scores = [attribute_batch(model, locate(model), batch).scores_sum_BLT.flatten() for model in (full, quantised)]
    assert not torch.equal(*scores)
    # How close they should be is a matter of the numbers of bits; a wrong wiring would be far off both.
    assert torch.corrcoef(torch.stack(scores))[0, 1] > (0.98 if quantization == "8bit" else 0.7)


def test_names_a_folder_that_is_not_there(tmp_path: Path):
    missing = str(tmp_path / "none")
    with pytest.raises(UserError, match=f"model.model_name: there is no folder {missing}; check the path"):
        load_model(missing)
    with pytest.raises(UserError, match=f"data.tokenizer: there is no folder {missing}; check the path"):
        load_tokenizer(missing)


def test_refuses_a_checkpoint_that_lacks_weights(random_model: GPT2LMHeadModel, tmp_path: Path):
    random_model.save_pretrained(tmp_path)
    config = random_model.config
    config.n_layer = 4
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 12 weights of its config, such as transformer.h.3"):
        load_model(str(tmp_path))


def test_refuses_a_revision_of_a_folder(model_folder: Path):
    with pytest.raises(UserError, match="model.revision: 'v2' is for models on the hub"):
        load_model(str(model_folder), revision="v2")


def test_names_a_folder_that_holds_no_tokenizer(random_model: GPT2LMHeadModel, tmp_path: Path):
    random_model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"data.tokenizer: "):
        load_tokenizer(str(tmp_path))


def test_names_a_folder_that_holds_no_model(tmp_path: Path):
    with pytest.raises(UserError, match=r"model.model_name: no model .* could be loaded .*save_pretrained"):
        load_model(str(tmp_path))


def test_names_a_hub_model_that_cannot_be_had():
    with pytest.raises(UserError, match=r"model.model_name: no model 'nobody/nothing' could be loaded .*network"):
        load_model("nobody/nothing")


def test_fingerprint_knows_a_model_again_and_another_from_it(random_model: GPT2LMHeadModel, model_folder: Path):
    before = fingerprint(random_model)
    assert fingerprint(load_model(str(model_folder))) == before
    with torch.no_grad():
        random_model.transformer.h[1].mlp.c_fc.bias += 0.01
    assert fingerprint(random_model) != before
