"""Real rows with tokenizers of every kind, and the peculiarities of each kind."""

from __future__ import annotations

from itertools import islice

import pytest
from project import COUNTERFACT
from tokenizer_families import FAMILIES, GPT2_FOLDER, family, real_gpt2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_attr.errors import UserError
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import Fact, Rejected, parse_fact, read_facts
from lit_attr.facts.sources import SAMPLE, Row, open_rows
from lit_attr.facts.tokenization import build_contrasts

SENTENCEPIECE = ["llama2", "llama", "gemma", "xglm", "t5"]


@pytest.fixture(scope="module")
def real_rows() -> list[Row]:
    """The first 2,000 rows of CounterFact, or the sample where that file is missing."""
    rows = list(islice(open_rows(str(COUNTERFACT) if COUNTERFACT.exists() else SAMPLE), 2000))
    assert len(rows) == (2000 if COUNTERFACT.exists() else 474)
    return rows


def made(subject: str = "Spain", true: str = "Madrid", false: str = "Paris", prompt: str | None = None) -> Fact:
    row = {"subject": subject, "prompt": prompt, "target_true": true, "target_false": false}
    return parse_fact({**row, "relation": None if prompt else "The capital of {} is"}, 0)


def only(fact: Fact, name: str, add_bos_token: bool | None = None) -> Contrast:
    (contrast,), rejected = build_contrasts([fact], family(name), add_bos_token=add_bos_token)
    assert not rejected
    return contrast


def why_not(fact: Fact, tokenizer: PreTrainedTokenizerBase) -> str:
    contrasts, (rejected,) = build_contrasts([fact], tokenizer)
    assert not contrasts
    return rejected.reason


def subject_text(contrast: Contrast) -> str:
    return "".join(contrast.tokens[slice(*contrast.subject_span)])


def specials_before(contrast: Contrast, tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of special tokens before a contrast's text, whose tokens are checked."""
    leading = int(contrast.tokens[0] in tokenizer.all_special_tokens)
    fact, context = contrast.fact, "".join(contrast.tokens[leading:])
    assert context.startswith(fact.prompt)
    assert (fact.prompt + fact.target_true).startswith(context)
    return leading


def tokenised(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[list[Contrast], list[Rejected]]:
    """The contrasts and the rejected rows, after checking that they make up all rows, each once."""
    table = read_facts(rows)
    contrasts, rejected = build_contrasts(table.facts, tokenizer)
    rejected += table.rejected
    numbers = [found.fact.row for found in contrasts] + [row.row for row in rejected]
    assert sorted(numbers) == list(range(len(rows)))
    assert all(row.reason for row in rejected)
    for contrast in contrasts:
        specials_before(contrast, tokenizer)
    return contrasts, rejected


@pytest.mark.parametrize("name", FAMILIES)
def test_every_real_row_becomes_a_contrast(real_rows: list[Row], name: str):
    contrasts, rejected = tokenised(real_rows, family(name))
    assert not rejected
    assert all(subject_text(contrast).strip() == contrast.fact.subject for contrast in contrasts)


@pytest.mark.parametrize("name", FAMILIES)
def test_real_rows_with_a_trailing_space_become_contrasts(real_rows: list[Row], name: str):
    rows = [{**row, "prompt": f"{row['prompt']} "} for row in real_rows]
    contrasts, rejected = tokenised(rows, family(name))
    assert not rejected
    for contrast, row in zip(contrasts, rows, strict=True):
        assert contrast.fact.prompt + contrast.fact.target_true == row["prompt"] + row["target_true"].strip()


@pytest.mark.skipif(not GPT2_FOLDER.exists(), reason="needs GPT-2's tokenizer")
def test_every_real_row_becomes_a_contrast_with_the_tokenizer_of_gpt2(real_rows: list[Row]):
    contrasts, rejected = tokenised(real_rows, real_gpt2())
    assert not rejected
    # As in "Comic High!, in": the last token of the subject may include the comma after it.
    other = {
        subject_text(contrast) for contrast in contrasts if subject_text(contrast).strip() != contrast.fact.subject
    }
    assert other <= {"Comic High!,", "Ready, Steady, Charlie!,", " Washington, D.C.?"}


@pytest.mark.parametrize("name", ["roberta", "llama2", "llama", "xglm", "t5"])
def test_a_space_inserted_before_the_subject_is_not_part_of_it(name: str):
    contrast = only(made("東京", prompt="東京 is in"), name)
    leading = specials_before(contrast, family(name))
    assert family(name).convert_ids_to_tokens(contrast.token_ids[leading]) in ("▁", "Ġ")
    assert contrast.tokens[leading] == ""
    assert contrast.subject_span[0] == leading + 1
    assert subject_text(contrast) == "東京"
    assert contrast.roles[: leading + 2] == (*["prefix"] * (leading + 1), "first subject")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "subject",
    [
        "cafe\u0301",
        "Zu\u0308rich",
        "İzmir",
        "ﬁsh",
        "½",
        "हिन्दी",
        "القاهرة",
        "ירושלים",
        "東京都",
        "👩\u200d🚀",
        "🇪🇸",
        "ﷺ",
    ],
)
def test_the_tokens_of_the_span_spell_the_subject_in_any_script(name: str, subject: str):
    for prompt in (f"The capital of {subject} is", f"{subject} is", f"Of {subject}, {subject} is", subject):
        contrast = only(made(subject, prompt=prompt), name)
        specials_before(contrast, family(name))
        assert subject_text(contrast).strip() == subject


@pytest.mark.parametrize("name", FAMILIES)
def test_a_repeated_subject_is_the_first_or_that_of_the_relation(name: str):
    row = {"subject": "Nice", "prompt": "In Nice it is Nice to", "target_true": "be", "target_false": "go"}
    first, second = parse_fact(row, 0), parse_fact({**row, "relation": "In Nice it is {} to"}, 0)
    before = [
        "".join(contrast.tokens[specials_before(contrast, family(name)) : contrast.subject_span[0]]).strip()
        for contrast in (only(first, name), only(second, name))
    ]
    assert before == ["In", "In Nice it is"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_is_its_subject_has_only_subject_roles(name: str):
    contrast = only(made("Spain", prompt="Spain"), name)
    leading = specials_before(contrast, family(name))
    assert contrast.subject_span == (leading, len(contrast.tokens))
    assert set(contrast.roles[leading:]) <= {"first subject", "middle subject", "last subject"}


@pytest.mark.parametrize("name", FAMILIES)
def test_spaces_around_answers_change_nothing(name: str):
    expected = only(made(true=" Madrid", false=" Paris"), name)
    for true, false in (("Madrid", "Paris"), (" Madrid ", "Paris\n"), ("Madrid", " Paris")):
        assert only(made(true=true, false=false), name) == expected


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_answers_that_share_a_lone_space_are_compared_after_it(name: str):
    contrast = only(made(true="東", false="京"), name)
    assert contrast.step > 0
    assert "".join(contrast.tokens).endswith("The capital of Spain is ")


@pytest.mark.parametrize("name", FAMILIES)
def test_no_special_token_stands_after_the_prompt(name: str):
    contrast = only(made(), name)
    specials = family(name).all_special_ids
    assert not set(contrast.token_ids[1:]) & set(specials)
    assert "".join(contrast.tokens).endswith("The capital of Spain is")


@pytest.mark.parametrize("name", ["xglm", "t5", "bert"])
def test_an_answer_with_unknown_characters_is_rejected(name: str):
    for answer in ("😀", "Rome 😀"):
        reason = why_not(made(false=answer), family(name))
        assert reason == f"the tokenizer has no token for a part of the answer ' {answer}'"
    assert subject_text(only(made("😀"), name)).strip() == "😀"


def test_answers_that_differ_only_in_dropped_characters_are_rejected():
    reason = why_not(made(true="Málaga", false="malaga"), family("bert"))
    assert reason == "the answers ' Málaga' and ' malaga' have the same tokens"
    assert "has no token for a part of the answer" in why_not(made(false="\u200d"), family("bert"))


def test_a_subject_that_the_tokenizer_drops_is_rejected():
    assert why_not(made("\u200d"), family("bert")).startswith("no token of the prompt belongs to the subject")
    assert "no token of the prompt" in why_not(made("\u200d", prompt="\u200d"), family("bert"))


def test_a_merge_across_the_prompts_end_is_found_even_if_the_ids_agree():
    """The unknown end of the prompt and the unknown beginning of the answer become one token."""
    letters = Tokenizer(models.BPE({"?": 0, "a": 1, "b": 2, "c": 3}, [], unk_token="?", fuse_unk=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?")
    assert tokenizer("a☃").input_ids == tokenizer("a☃ ☃b").input_ids[:2] == [1, 0]
    reason = why_not(made("a", prompt="a☃", true="☃b", false="☃c"), tokenizer)
    assert reason == "the tokenizer merges the prompt's end with the answer ' ☃b'"


HAVE_BOS = [name for name in FAMILIES if name not in ("t5", "bert")]


@pytest.mark.parametrize("name", HAVE_BOS)
def test_add_bos_token_puts_one_or_none(name: str):
    bos_id = family(name).bos_token_id
    without, with_bos = only(made(), name, False), only(made(), name, True)
    assert without.token_ids == tuple(family(name)("The capital of Spain is", add_special_tokens=False).input_ids)
    assert with_bos.token_ids == (bos_id, *without.token_ids)
    assert with_bos.tokens == (family(name).bos_token, *without.tokens)
    assert with_bos.roles == ("prefix", *without.roles)
    assert with_bos.subject_span == tuple(place + 1 for place in without.subject_span)
    assert with_bos[6:] == without[6:]
    if name != "xglm":
        assert only(made(), name) == (without if name == "gpt2" else with_bos)


@pytest.mark.parametrize("name", HAVE_BOS)
@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_a_prompt_that_spells_out_the_bos_token_gets_no_second(name: str, add_bos_token: bool | None):
    bos, bos_id = family(name).bos_token, family(name).bos_token_id
    contrast = only(made(prompt=f"{bos}The capital of Spain is"), name, add_bos_token)
    assert contrast.token_ids.count(bos_id) == 1
    assert contrast.token_ids.index(bos_id) == (name == "xglm" and add_bos_token is None)
    assert subject_text(contrast).strip() == "Spain"


def test_without_a_bos_token_no_special_token_is_left_before_the_text():
    for name in ("xglm", "bert"):
        assert only(made(), name).roles[0] == "prefix"
        assert not set(only(made(), name, False).token_ids) & set(family(name).all_special_ids)


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_a_missing_bos_token_cannot_be_added(name: str):
    with pytest.raises(UserError, match="^add_bos_token: the tokenizer has no beginning-of-sequence token"):
        build_contrasts([made()], family(name), add_bos_token=True)
