"""Attributions without a Trainer, and how a notebook shows them."""

from __future__ import annotations

import html
import io
import json
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from project import writing_trainer
from strangers import StrangersModule, state
from torch import nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

import lit_attr
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.models.loading import load_model
from lit_attr.module import AttributionModule
from lit_attr.notebook import MAX_SHOWN, Attribution, Attributions, attribute
from lit_attr.settings import LoadingOptions
from lit_attr.views.pictures import fact_image

ROWS = [*open_rows(SAMPLE)][:12]


def examples(folder: Path) -> dict[tuple[Any, int], dict[str, Any]]:
    """The examples of a run, by id and step."""
    found = {}
    for path in folder.glob("batches/*.json"):
        record = json.loads(path.read_text())
        shared = {name: record[name] for name in ("layers", "rule")}
        found |= {(example["id"], example["step"]): {**example, **shared} for example in record["examples"]}
    return found


def test_three_lines_attribute_a_fact():
    fact = {
        "prompt": "The capital of Spain is",
        "subject": "Spain",
        "target_true": "Madrid",
        "target_false": "Lisbon",
    }
    (record,) = lit_attr.attribute(facts=fact)
    assert record["rank_true"] == 0
    assert record["scores"]["mlp"]["sum"].shape == (8, len(record["tokens"]))


@pytest.mark.parametrize(
    "settings", [{}, {"layers": [0, -1], "component": "attention"}, {"rule": "linearised", "step": "all"}]
)
def test_records_equal_those_of_a_run(
    random_model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, settings: dict[str, Any]
):
    data = CounterfactDataModule(limit=40, max_tokens=200)
    module = AttributionModule(model=random_model, tokenizer=tokenizer, verify=0, **settings)
    writing_trainer(tmp_path).predict(module, datamodule=data)
    expected = examples(tmp_path)
    records = attribute(random_model, tokenizer, limit=40, max_tokens=200, **settings)
    assert [(record["id"], record["step"]) for record in records] == sorted(expected)
    assert len(records) >= 40
    for record in records:
        other = expected[record["id"], record["step"]]
        assert list(record) == list(other)
        assert list(record["scores"]) == list(other["scores"]) == [settings.get("component", "mlp")]
        for component, kinds in other["scores"].items():
            assert list(record["scores"][component]) == list(kinds)
            for kind, scores in kinds.items():
                assert np.array_equal(record["scores"][component][kind], np.array(scores, dtype=np.float32))
        for name in other.keys() - {"scores"}:
            assert record[name] == (tuple(other[name]) if isinstance(record[name], tuple) else other[name])


def test_accepts_facts_in_every_form(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    expected = [row["prompt"] for row in ROWS]
    for facts in (ROWS, iter(ROWS), Dataset.from_list(ROWS), path, str(path)):
        assert [record["prompt"] for record in attribute(facts=facts)] == expected
    assert [record["prompt"] for record in attribute(limit=12)] == expected
    answers = [{**row, "target_true": None, "answer": row["target_true"]} for row in ROWS]
    (record, *_) = attribute(facts=answers, columns={"target_true": "answer"}, template="Q: {prompt}")
    assert record["prompt"] == f"Q: {ROWS[0]['prompt']}"


def test_accepts_models_in_every_form(model_folder: Path, tokenizer: PreTrainedTokenizerBase):
    loaded = load_model(str(model_folder))
    module = nn.ModuleDict({"net": nn.ModuleDict({"lm": loaded}), "critic": nn.Linear(2, 2)})
    module.tokenizer = tokenizer
    by_name = attribute(str(model_folder), facts=ROWS)
    for model in (loaded, module):
        for record, other in zip(attribute(model, facts=ROWS), by_name, strict=True):
            assert np.array_equal(record["scores"]["mlp"]["sum"], other["scores"]["mlp"]["sum"])
    (record, *_) = attribute(str(model_folder), facts=ROWS, dtype="bfloat16")
    assert not np.array_equal(record["scores"]["mlp"]["sum"], by_name[0]["scores"]["mlp"]["sum"])
    adapted = get_peft_model(
        loaded, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, fan_in_fan_out=True)
    )
    (record, *_) = attribute(adapted, facts=ROWS)
    assert not np.array_equal(record["scores"]["mlp"]["sum"], by_name[0]["scores"]["mlp"]["sum"])


@pytest.mark.parametrize("rule", ["gradient", "linearised", "exact"])
def test_leaves_the_model_unchanged(rule: Any):
    module = StrangersModule()
    module.lm(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    before = state(module)
    assert len(set(before[3])) == 2
    assert len(attribute(module, facts=ROWS, rule=rule)) == len(ROWS)
    assert state(module) == before


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_computes_scores_where_gradients_are_off(mode: Any, model_folder: Path):
    expected = attribute(str(model_folder), facts=ROWS, rule="norm-secant")
    with mode():
        records = attribute(str(model_folder), facts=ROWS, rule="norm-secant")
    for record, other in zip(records, expected, strict=True):
        assert np.array_equal(record["scores"]["mlp"]["sum"], other["scores"]["mlp"]["sum"])


def test_no_batch_exceeds_max_tokens(random_model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase):
    sizes = []
    random_model.transformer.wte.register_forward_hook(lambda _, args, __: sizes.append(args[0].numel()))
    attribute(random_model, tokenizer)
    # The default on a CPU; the self-test's own inputs are smaller.
    assert 500 < max(sizes) <= 1024
    sizes.clear()
    attribute(random_model, tokenizer, max_tokens=100)
    assert 50 < max(sizes) <= 100


def test_leaves_out_unusable_rows_with_a_warning():
    facts = [
        ROWS[0],
        {**ROWS[1], "subject": "Atlantis"},
        ROWS[2],
        {**ROWS[3], "prompt": "so " * 70 + ROWS[3]["prompt"]},
    ]
    message = r"^attribute.facts: 2 rows left out; the first, row 1 \(id 1\): the subject 'Atlantis' is not in"
    with pytest.warns(UserWarning, match=message) as caught:
        records = attribute(facts=facts)
    assert caught[-1].filename == __file__
    assert [record["id"] for record in records] == [0, 2]
    assert [(each.row, each.reason[:7]) for each in records.rejected] == [(1, "the sub"), (3, "step 0:")]
    assert "2 attributions" in repr(records) and "2 rows left out" in repr(records)


def test_leaves_out_non_finite_numbers_with_a_warning(
    random_model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
):
    nan_from = tokenizer(ROWS[0]["prompt"]).input_ids[-2]
    random_model.lm_head.weight = nn.Parameter(random_model.lm_head.weight.detach().clone())
    random_model.transformer.wte.weight.data[nan_from] = float("nan")
    having = [nan_from in tokenizer(row["prompt"]).input_ids for row in ROWS]
    with pytest.warns(UserWarning, match=f"{sum(having)} rows? left out; the first, row 0 .* is not finite"):
        records = attribute(random_model, tokenizer, ROWS, loading=LoadingOptions(self_test=False))
    assert [record["id"] for record in records] == [row for row, has in enumerate(having) if not has]


def test_attributions_are_a_sequence():
    records = attribute(facts=ROWS)
    assert isinstance(records, Attributions) and isinstance(records[0], Attribution)
    assert next(reversed(records)) is records[-1] is records[len(ROWS) - 1]
    assert [record["id"] for record in records[2:5]] == [2, 3, 4]
    assert isinstance(records[2:5], Attributions)
    assert (
        repr(records[0])
        == f"<{ROWS[0]['prompt']} → Madrid / Lisbon: logit difference {records[0]['logit_diff']:+.2f}>"
    )
    assert len(repr(records)) < 200


class Page(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_record_is_displayed_as_its_heatmap():
    record = attribute(facts=ROWS)[0]
    ((tag, attributes),) = Page(record._repr_html_()).tags
    assert tag == "img" and set(attributes) == {"alt", "style", "src"}
    kind, data = attributes["src"].split(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(b64decode(data)))
    expected = fact_image(record)
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(expected))
    scores = record["scores"]["mlp"]["sum"]
    layer, token = np.unravel_index(np.abs(scores).argmax(), scores.shape)
    assert attributes["alt"] == (
        f"The capital of Spain is → Madrid / Lisbon: logit difference {record['logit_diff']:+.2f}; largest score "
        f"{scores[layer, token]:+.2f}, at {record['tokens'][token]!r} in layer {layer}"
    )


def test_a_sequence_displays_its_first_records():
    records = attribute(facts=ROWS)
    page = Page(records._repr_html_())
    assert [tag for tag, _ in page.tags] == ["p", "div", *["img"] * MAX_SHOWN]
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert [alt.split(" →")[0] for alt in alts] == [row["prompt"] for row in ROWS[:MAX_SHOWN]]
    assert page.text == (
        "12 attributions, MLP gradient × activation; true answer preferred in 100.0%; the first 4 are shown"
    )
    few = Page(records[:2]._repr_html_())
    assert len(few.tags) == 4 and few.text.endswith("in 100.0%")
    assert Page(records[:0]._repr_html_()).text == "0 attributions"


def test_the_text_of_a_fact_is_escaped():
    name = "<script>alert('x')</script> & \"Spain\""
    fact = {
        "prompt": f"The capital of {name} is",
        "subject": name,
        "target_true": "Madrid",
        "target_false": "Rome",
    }
    records = attribute(facts=fact)
    for shown in (records._repr_html_(), records[0]._repr_html_()):
        assert "<script" not in shown and html.escape(name) in shown
        assert {tag for tag, _ in Page(shown).tags} <= {"p", "div", "img"}
        assert Page(shown).tags[-1][1]["alt"].startswith(f"The capital of {name} is")


def test_adaptive_attributions_of_many_facts_have_a_random_pilot():
    rows = [*open_rows(SAMPLE)][:80]
    plain, exact = attribute(facts=rows), attribute(facts=rows, rule="exact")
    found = attribute(facts=rows, min_agreement=0.95)
    cells: list[tuple[np.ndarray, ...]] = []
    for each, estimated, known in zip(found, plain, exact, strict=True):
        assert each["id"] == estimated["id"] == known["id"]
        parts = (each["is_exact"]["mlp"], *(one["scores"]["mlp"]["sum"] for one in (each, estimated, known)))
        cells.append(tuple(np.asarray(part).ravel() for part in parts))
    is_exact_N, scores_N, estimates_N, effects_N = (np.concatenate(part) for part in zip(*cells, strict=True))
    np.testing.assert_allclose(scores_N[is_exact_N], effects_N[is_exact_N], atol=1e-5 * np.abs(effects_N).max())
    np.testing.assert_allclose(scores_N[~is_exact_N], estimates_N[~is_exact_N], rtol=1e-4, atol=1e-6)
    pilot = [is_exact.all() for is_exact, *_ in cells]
    assert sum(pilot) == 16 and not all(pilot[:16])
    assert np.corrcoef(estimates_N, effects_N)[0, 1] < 0.9 < 0.95 <= np.corrcoef(scores_N, effects_N)[0, 1]


def test_adaptive_attributions_of_a_few_facts_are_exact():
    found, exact = attribute(facts=ROWS, min_agreement=0.9), attribute(facts=ROWS, rule="exact")
    for each, known in zip(found, exact, strict=True):
        assert np.all(each["is_exact"]["mlp"])
        np.testing.assert_allclose(each["scores"]["mlp"]["sum"], known["scores"]["mlp"]["sum"], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_agreement": 2}, "attribute.min_agreement: 2 is not between 0 and 1, such as 0.95"),
        ({"facts": "none.csv"}, "attribute.facts: there is no file none.csv; check the path"),
        (
            {"facts": [{**ROWS[0], "subject": "x"}]},
            "attribute.facts: no row of 1 can be used; the first, row 0",
        ),
        ({"layers": 99}, "attribute.layers: there is no layer 99; this model has 8, 0 to 7"),
        ({"component": "mpl"}, "attribute.component: 'mpl' is none of mlp, attention, block"),
        ({"rule": "no"}, "attribute.rule: "),
        ({"model": "/none"}, "attribute.model: there is no folder /none; check the path"),
        ({"model": nn.Linear(2, 2)}, "attribute.model: Linear holds 0 language models of transformers"),
        ({"tokenizer": "/none"}, "attribute.tokenizer: there is no folder /none; check the path"),
        ({"template": "Q:"}, "attribute.template: 'Q:' names no column"),
        ({"max_tokens": 0}, "attribute.max_tokens: 0 is less than 1"),
    ],
)
def test_mistakes_are_named_by_the_arguments_of_attribute(settings: dict[str, Any], message: str):
    with pytest.raises(UserError) as raised:
        attribute(**settings)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_model_without_a_name_needs_a_tokenizer(random_model: GPT2LMHeadModel):
    with pytest.raises(
        UserError, match="^attribute.tokenizer: neither the module nor the data module has one; give one"
    ):
        attribute(random_model, facts=ROWS)


def test_several_components_are_shown_side_by_side():
    records = attribute(facts=ROWS[:2], component=["mlp", "attention"])
    assert repr(records).startswith("<2 attributions, MLP and attention gradient × activation")
    for component in ("mlp", "attention"):
        alone = attribute(facts=ROWS[:2], component=component)
        for record, other in zip(records, alone, strict=True):
            assert list(record["scores"]) == ["mlp", "attention"]
            np.testing.assert_array_equal(record["scores"][component]["sum"], other["scores"][component]["sum"])
    (record, _) = records
    largest = {name: np.abs(each["sum"]).max() for name, each in record["scores"].items()}
    name = {"mlp": "MLP", "attention": "attention"}[max(largest, key=largest.__getitem__)]
    assert f" of {name}, at " in record._repr_html_()


def test_adaptive_attributions_of_several_components_are_exact_in_each():
    records = attribute(facts=ROWS[:3], component=["mlp", "attention"], min_agreement=0.9, pilot=4)
    for record in records:
        assert {name: np.all(cells) for name, cells in record["is_exact"].items()} == {
            "mlp": True,
            "attention": True,
        }
