"""What joins an answer to its prompt: by the characters at the seam, by special tokens, or as it is set."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from project import REPOSITORY
from tokenizer_families import FAMILIES, family
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.cli import main
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.collator import ContrastCollator
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import parse_fact, read_facts
from lit_attr.facts.sources import open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.notebook import attribute

CASES = REPOSITORY / "tests" / "support" / "cases"
TURN = "<|assistant|>"
# Rows of scripts without spaces between words: Thai, Khmer, Lao, Burmese, Chinese, Japanese.
SCRIPTS = {
    "thai": ("เมืองหลวงของไทยคือ", "ไทย", "กรุงเทพ", "เชียงใหม่"),
    "khmer": ("រាជធានីនៃកម្ពុជាគឺ", "កម្ពុជា", "ភ្នំពេញ", "សៀមរាប"),
    "lao": ("ນະຄອນຫຼວງຂອງລາວແມ່ນ", "ລາວ", "ວຽງຈັນ", "ປາກເຊ"),
    "burmese": ("မြန်မာနိုင်ငံ၏မြို့တော်မှာ", "မြန်မာ", "နေပြည်တော်", "ရန်ကုန်"),
    "chinese": ("中国的首都是", "中国", "北京", "上海"),
    "japanese": ("日本の首都は", "日本", "東京", "大阪"),
}


def row(prompt: str, subject: str, true: str, false: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "subject": subject, "target_true": true, "target_false": false, **more}


SPAIN = row("The capital of Spain is", "Spain", "Madrid", "Paris")


@pytest.mark.parametrize(
    ("prompt", "answer", "joined"),
    [
        # Scripts with spaces.
        ("The capital of Spain is", "Madrid", " Madrid"),
        ("스페인의 수도는", "마드리드", " 마드리드"),
        ("राजधानी है", "दिल्ली", " दिल्ली"),
        ("عاصمة مصر هي", "القاهرة", " القاهرة"),
        ("The capital of Spain, in Chinese, is", "马德里", " 马德里"),
        ("Spain 😀", "Madrid", " Madrid"),
        ("Answer:", "北京", " 北京"),
        # Chinese and Japanese: after any of their characters, of any width.
        ("中国的首都是", "北京", "北京"),
        ("日本の首都は", "東京", "東京"),
        ("ｽﾍﾟｲﾝﾉｼｭﾄﾊ", "ﾏﾄﾞﾘｯﾄﾞ", "ﾏﾄﾞﾘｯﾄﾞ"),
        ("ジュースはオレンジジュー", "ス", "ス"),
        ("首都：", "北京", "北京"),
        ("他说：「", "好", "好"),
        ("他出生于", "1990年", "1990年"),
        ("我用的手机是", "iPhone", "iPhone"),
        ("他出生于1990", "年", "年"),
        ("首都是哪里?", "北京", "北京"),
        # Thai and the scripts like it: between two of their characters.
        ("เมืองหลวงของไทยคือ", "กรุงเทพ", "กรุงเทพ"),
        ("ນະຄອນຫຼວງຂອງລາວແມ່ນ", "ວຽງຈັນ", "ວຽງຈັນ"),
        ("រាជធានីនៃកម្ពុជាគឺ", "ភ្នំពេញ", "ភ្នំពេញ"),
        ("មြို့တော်မှာ"[1:], "နေပြည်တော်", "နေပြည်တော်"),
        ("เขาเกิดในปี", "1990", " 1990"),
        ("เขาใช้", "iPhone", " iPhone"),
        ("រាជធានីនៃកម្ពុជាគឺ\u200b", "ភ្នំពេញ", "ភ្នំពេញ"),
        # After an opening bracket or quotation mark.
        ("Its capital (", "Madrid", "Madrid"),
        ("Its capital is “", "Madrid", "Madrid"),
        ("Its capital (since 1561", "Madrid", " Madrid"),
        # White space that is there stays the only one.
        ("中国的首都是", " 北京", " 北京"),
        ("中国的首都是 ", "北京", "北京"),
        ("The capital is\n", " Madrid", "Madrid"),
    ],
)
def test_the_characters_at_the_seam_decide(prompt: str, answer: str, joined: str):
    fact = parse_fact(row(f"Spain {prompt}", "Spain", answer, "other"), 0)
    assert fact.target_true == joined


@pytest.mark.parametrize(
    ("separator", "true", "false"),
    [
        ("auto", " Madrid", " Paris"),
        ("", "Madrid", " Paris"),
        ("\n", "\nMadrid", " Paris"),
        (" (", " (Madrid", " Paris"),
    ],
)
def test_a_separator_can_be_set(separator: str, true: str, false: str):
    rows = [{**SPAIN, "target_false": " Paris"}]
    (fact,) = read_facts(rows, answer_separator=separator).facts
    assert (fact.target_true, fact.target_false) == (true, false)


def test_a_separator_that_no_text_has_is_refused():
    with pytest.raises(UserError, match=r"^data\.answer_separator: .* control character U\+0000"):
        CounterfactDataModule([SPAIN], answer_separator="\0").setup()


@pytest.fixture
def wide_model(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer) + 1, n_layer=2, n_embd=32, n_head=2, n_positions=256, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def chat_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    with_turns = copy.deepcopy(tokenizer)
    with_turns.add_special_tokens({"additional_special_tokens": [TURN]})
    return with_turns


def by_plain_hooks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, true: str, false: str
) -> tuple[float, np.ndarray]:
    """Logit difference and gradient x activation of every MLP for two texts, written out."""
    ids_true, ids_false = (tokenizer(text).input_ids for text in (prompt + true, prompt + false))
    step = next(k for k, (ours, theirs) in enumerate(zip(ids_true, ids_false, strict=False)) if ours != theirs)
    writes: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        writes.append(output)

    hooks = [block.mlp.register_forward_hook(keep) for block in model.transformer.h]
    logits = model(torch.tensor([ids_true[:step]])).logits[0, -1]
    for hook in hooks:
        hook.remove()
    difference = logits[ids_true[step]] - logits[ids_false[step]]
    difference.backward()
    return difference.item(), np.stack([(write * write.grad).sum(-1)[0].detach().numpy() for write in writes])


def assert_as_by_hooks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fact: dict[str, Any], template: str = "{prompt}"
) -> None:
    """The record of a fact has the numbers of its texts as they are written, without anything between them."""
    (record,) = attribute(model, tokenizer, fact, template=template)
    prompt = template.replace("{prompt}", fact["prompt"])
    expected, scores_LT = by_plain_hooks(model, tokenizer, prompt, fact["target_true"], fact["target_false"])
    assert (record["target_true"], record["target_false"]) == (fact["target_true"], fact["target_false"])
    assert record["logit_diff"] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(record["scores"]["mlp"]["sum"], scores_LT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_without_spaces_are_scored_as_written(
    wide_model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, script: str
):
    assert_as_by_hooks(wide_model, tokenizer, row(*SCRIPTS[script]))


@pytest.mark.parametrize("template", [f"{{prompt}}{TURN}", f"Q: {{prompt}}?{TURN}"])
def test_no_space_stands_after_a_special_token_that_ends_the_prompt(
    wide_model: GPT2LMHeadModel, chat_tokenizer: PreTrainedTokenizerBase, template: str
):
    assert_as_by_hooks(wide_model, chat_tokenizer, SPAIN, template)


def test_no_space_stands_before_a_special_token_that_begins_an_answer(
    wide_model: GPT2LMHeadModel, chat_tokenizer: PreTrainedTokenizerBase
):
    (record,) = attribute(wide_model, chat_tokenizer, {**SPAIN, "target_true": f"{TURN}Madrid"})
    assert (record["target_true"], record["target_false"]) == (f"{TURN}Madrid", " Paris")


@pytest.mark.parametrize("prompt", ["<b>The capital of Spain</b>", "The capital of [Spain]", f"{TURN} Spain is"])
def test_what_only_looks_like_a_special_token_is_followed_by_a_space(
    chat_tokenizer: PreTrainedTokenizerBase, prompt: str
):
    (contrast,), _ = build_contrasts([parse_fact({**SPAIN, "prompt": prompt}, 0)], chat_tokenizer)
    assert (contrast.fact.target_true, contrast.fact.target_false) == (" Madrid", " Paris")


def test_a_set_separator_stands_after_a_special_token_too(chat_tokenizer: PreTrainedTokenizerBase):
    data = CounterfactDataModule([SPAIN], chat_tokenizer, template=f"{{prompt}}{TURN}", answer_separator=" ")
    data.setup()
    assert data.contrasts[0].fact.target_true == " Madrid"


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_with_and_without_a_space_are_one_contrast_in_every_family(name: str):
    rows = [SPAIN, {**SPAIN, "target_true": " Madrid"}]
    contrasts, _ = build_contrasts([parse_fact(each, 0) for each in rows], family(name))
    assert contrasts[0] == contrasts[1]


def test_the_separator_is_part_of_the_datas_identity(tokenizer: PreTrainedTokenizerBase):
    identities = []
    for separator in ("auto", "", "\n"):
        data = CounterfactDataModule([row(*SCRIPTS["chinese"])], tokenizer, answer_separator=separator)
        data.setup()
        identities.append(data.identity())
    assert [each["answer_separator"] for each in identities] == ["auto", "", "\n"]
    # `auto` puts nothing before a Chinese answer.
    assert identities[0]["content"] == identities[1]["content"] != identities[2]["content"]


def test_the_collator_joins_as_the_data_module_does(tokenizer: PreTrainedTokenizerBase):
    for separator, answer in (("auto", "北京"), (" ", " 北京"), ("\n", "\n北京")):
        batch = ContrastCollator(tokenizer, answer_separator=separator)([row(*SCRIPTS["chinese"])])
        assert batch.contrasts[0].fact.target_true == answer


@pytest.mark.parametrize(("separator", "answer"), [(None, "北京"), ("", "北京"), (" ", " 北京"), ("auto", "北京")])
def test_the_command_line_sets_the_separator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str | None, answer: str
):
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    quiet += ["--model.verify", "0", "--data.limit", "1", "--writer.output_dir", str(tmp_path)]
    words = [] if separator is None else ["--data.answer_separator", separator]
    main(["predict", *quiet, "--data.source", str(CASES / "cjk.jsonl"), *words])
    (path,) = tmp_path.glob("batches/*.json")
    (example,) = json.loads(path.read_text())["examples"]
    assert example["target_true"] == answer
    expected = "auto" if separator is None else separator
    assert json.loads((tmp_path / "manifest.json").read_text())["data"]["answer_separator"] == expected


def contrasts_of(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Iterator[Contrast]:
    contrasts, rejected = build_contrasts(read_facts(rows).facts, tokenizer)
    assert not rejected
    return iter(contrasts)


@pytest.mark.parametrize("end", [" ", "  ", "\n", " \n", "\n\n", "\t", "\u3000"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_space_at_the_prompts_end_is_the_same_text(name: str, end: str):
    """The model gets the text that prompt and answer make; only where it is cut differs between tokenizers."""
    (contrast,) = contrasts_of([{**SPAIN, "prompt": SPAIN["prompt"] + end}], family(name))
    fact = contrast.fact
    for ours, answer in ((fact.target_true, "Madrid"), (fact.target_false, "Paris")):
        assert fact.prompt + ours == SPAIN["prompt"] + end + answer
    whole = family(name)(SPAIN["prompt"] + end + "Madrid").input_ids
    compared = len(contrast.token_ids)
    assert [*contrast.token_ids, contrast.true_token_id] == whole[: compared + 1]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("bert", "t5")])
def test_a_space_moves_from_the_prompt_to_the_answers_where_the_tokenizer_merges_it(name: str):
    """The tokenizers of BERT and T5 drop the space at the end of a prompt."""
    spaced, plain = contrasts_of([{**SPAIN, "prompt": f"{SPAIN['prompt']} "}, SPAIN], family(name))
    assert spaced._replace(fact=plain.fact) == plain
    assert spaced.fact._replace(row=1, id=1) == plain.fact


def test_the_case_with_a_trailing_space_is_taken(tokenizer: PreTrainedTokenizerBase):
    (contrast,) = contrasts_of(list(open_rows(str(CASES / "trailing-space.jsonl"))), tokenizer)
    assert contrast.fact.prompt + contrast.fact.target_true == "The capital of Spain is Madrid"
    assert contrast.tokens[-1] == " is" and contrast.true_token.startswith(" ")
