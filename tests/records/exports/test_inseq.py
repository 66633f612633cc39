"""Exports for Inseq: what Inseq makes of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers import alike_in_length
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.errors import UserError
from lit_attr.facts.contrasts import Contrast
from lit_attr.records.exports.export import export
from lit_attr.records.exports.inseq import STEP_SCORES
from lit_attr.text import safe_name

LAYERS = [0, 2, 7]


def seen(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per", ["example", "layer"])
def test_inseq_loads_and_shows_the_scores(run: Path, records: list[dict[str, Any]], tmp_path: Path, per: str):
    from inseq import FeatureAttributionOutput

    folder = export(run, "inseq", tmp_path / "inseq", per)
    names = {f"{record['id']}_step_{record['step']}".removesuffix("_step_0"): record for record in records}
    heads = [""] if per == "example" else [f"layer_{layer}_" for layer in LAYERS]
    assert {path.name for path in folder.iterdir()} == {
        f"{head}ex_{name}.json" for head in heads for name in names
    }
    for name, record in names.items():
        width, logit_diff = len(record["tokens"]), record["logit_diff"]
        for place, head in enumerate(heads):
            loaded = FeatureAttributionOutput.load(folder / f"{head}ex_{name}.json")
            (sequence,) = loaded.sequence_attributions
            assert [token.token for token in sequence.source] == record["tokens"]
            assert sequence.target[:width] == sequence.source and len(sequence.target) == width + 1
            assert (sequence.attr_pos_start, sequence.attr_pos_end) == (width, width + 1)
            assert sequence.step_scores["contrast_logits_diff"].tolist() == pytest.approx([logit_diff], rel=1e-6)
            assert (loaded.info["id"], loaded.info["step"]) == (record["id"], record["step"])
            scores = sequence.target_attributions.numpy()
            assert np.isnan(scores[width]).all()
            expected_TL = record["scores"]["mlp"]["sum"].T
            if per == "layer":
                expected_TL = expected_TL[:, place : place + 1]
                scores = scores[..., None]
            assert scores.shape == (width + 1, 1, len(loaded.info["layers"]))
            assert loaded.info["layers"] == (LAYERS if per == "example" else [LAYERS[place]])
            np.testing.assert_allclose(scores[:width, 0], expected_TL, rtol=1e-6)
            # Nothing is normed or added up, unless somebody asks for it.
            own = loaded.aggregate().sequence_attributions[0].target_attributions
            torch.testing.assert_close(own, sequence.target_attributions, rtol=0, atol=0, equal_nan=True)
            page = loaded.show(display=False, return_html=True)
            assert max(record["tokens"], key=len).strip() in page
            assert ("Model Layer #2" in page) == (per == "example")
    same = next(name for name, each in names.items() if each["true_token_id"] == each["false_token_id"])
    (sequence,) = FeatureAttributionOutput.load(folder / f"{heads[0]}ex_{same}.json").sequence_attributions
    assert (sequence.target[-1].token, sequence.target[-1].id) == (
        names[same]["true_token"],
        names[same]["true_token_id"],
    )


@pytest.mark.filterwarnings("ignore")
def test_inseq_adds_layers_up_and_merges_contrasts(run: Path, records: list[dict[str, Any]], tmp_path: Path):
    from inseq import FeatureAttributionOutput

    folder = export(run, "inseq", tmp_path / "inseq")
    one, two = (FeatureAttributionOutput.load(folder / f"ex_{identity}.json") for identity in (0, 1))
    both = one + two
    expected = {record["id"]: record["scores"]["mlp"]["sum"].sum(0) for record in records if record["step"] == 0}
    added = both.aggregate("sum", normalize=False)
    for identity, sequence in enumerate(added.sequence_attributions):
        np.testing.assert_allclose(sequence.target_attributions[:-1, 0], expected[identity], rtol=1e-5, atol=1e-6)
    assert "Madrid" in " ".join(both.info["generated_texts"])
    assert "Spain" in added.show(display=False, return_html=True)


@pytest.mark.filterwarnings("ignore")
def test_a_layers_file_is_like_inseqs_own(
    run: Path,
    demo_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample_contrasts: list[Contrast],
    tmp_path: Path,
):
    """As in the example of Inseq's documentation, but with the objective that is ours, and signs."""
    import inseq

    folder = export(run, "inseq", tmp_path / "inseq", "layer")
    contrast = alike_in_length(sample_contrasts[:5], tokenizer)[0]
    fact, width = contrast.fact, len(contrast.tokens)
    path = "transformer.h.2.mlp"
    peer = inseq.load_model(demo_model, "layer_gradient_x_activation", tokenizer=tokenizer, target_layer=path)
    output = peer.attribute(
        fact.prompt,
        fact.prompt + fact.target_true,
        attributed_fn="contrast_logits_diff",
        contrast_targets=fact.prompt + fact.target_false,
        step_scores=list(STEP_SCORES),
        show_progress=False,
    )
    output.aggregate("sum", normalize=False).save(tmp_path / "theirs.json")
    theirs = inseq.FeatureAttributionOutput.load(tmp_path / "theirs.json")
    ours = inseq.FeatureAttributionOutput.load(folder / f"layer_2_ex_{fact.id}.json")
    (expected,), (sequence,) = theirs.sequence_attributions, ours.sequence_attributions
    expected_T, scores_T = (each.target_attributions[:width, 0] for each in (expected, sequence))
    tolerance = 1e-4 * expected_T.abs().max().item()
    torch.testing.assert_close(scores_T, expected_T, rtol=0, atol=tolerance)
    assert sequence.target_attributions.ndim == expected.target_attributions.ndim
    # NaN in the place of the token itself, as in theirs.
    assert expected.target_attributions[width, 0].isnan() and sequence.target_attributions[width, 0].isnan()
    assert sequence.attr_pos_start == expected.attr_pos_start
    assert sequence.step_scores.keys() == expected.step_scores.keys()
    for name, value in expected.step_scores.items():
        torch.testing.assert_close(sequence.step_scores[name], value[:1], rtol=1e-4, atol=1e-5)

    def spelt(text: str) -> str:
        return text.replace("Ġ", " ")

    last = sequence.target[-1]
    assert [token.token for token in sequence.source] == [spelt(token.token) for token in expected.source]
    assert (last.token, last.id) == (spelt(expected.target[width].token), expected.target[width].id)
    ignored = {"attr_pos_end", "model_name"}
    shared = ours.info.keys() & theirs.info.keys() - ignored
    assert shared >= {"attribution_method", "attributed_fn", "input_texts", "generated_texts", "step_scores"}
    assert {name: ours.info[name] for name in shared - {"attributed_fn_args"}} == {
        name: theirs.info[name] for name in shared - {"attributed_fn_args"}
    }
    assert ours.info["attributed_fn_args"].items() <= theirs.info["attributed_fn_args"].items()


def test_any_id_has_a_file_of_its_own(changed: Callable[..., Path], tmp_path: Path):
    texts = ["7_step_1", "a/b", "a_b", "A_b", "../a", ".a", "-1", "日" * 999, "日" * 998, "\U00020000" * 500]
    ids = [7, -1, *texts]
    folder = changed(*({"id": identity, "step": 0} for identity in ids), {"id": 7, "step": 1})
    files = sorted(export(folder, "inseq", tmp_path / "new" / "inseq").iterdir())
    assert seen(tmp_path / "new") == sorted(["inseq", *(f"inseq/{path.name}" for path in files)])
    # Some file systems take names for the same that differ in case.
    assert len({path.name.casefold() for path in files}) == len(ids) + 3
    found = [json.loads(path.read_bytes())["attributes"]["info"] for path in files]
    assert {(info["id"], info["step"]) for info in found} >= {*((identity, 0) for identity in ids), (7, 1)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per", ["example", "layer"])
def test_each_component_has_files_of_its_own(
    relabelled: Callable[..., Path], records: list[dict[str, Any]], tmp_path: Path, per: str
):
    from inseq import FeatureAttributionOutput

    path = "h.{layer}.mlp/x"
    folder = export(relabelled(lambda scores: {path: scores["mlp"], **scores}), "inseq", tmp_path / "inseq", per)
    files = 2 * len(records) * (1 if per == "example" else len(LAYERS))
    assert len(list(folder.iterdir())) == files
    head = "" if per == "example" else "layer_2_"
    for name, component in (("mlp", "mlp"), (safe_name(path), path)):
        loaded = FeatureAttributionOutput.load(folder / f"{head}{name}_ex_0.json")
        assert loaded.info["component"] == component


def test_without_inseq(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Python's own mark of a module that must not be imported.
    for name in ("inseq", "inseq.data", "inseq.data.attribution"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as error:
        export(run, "inseq", tmp_path / "out")
    message = str(error.value)
    assert message.startswith("inseq: it cannot be imported (")
    assert message.endswith("); pip install 'lit-attr[peers]'") and "\n" not in message
    assert seen(tmp_path) == []
    assert export(run, "csv", tmp_path / "out").exists()
