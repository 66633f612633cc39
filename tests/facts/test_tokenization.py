"""Token ids, steps and subject spans of facts, with a tokenizer whose ids can be read off."""

from __future__ import annotations

import pytest
from toys import WORDS, word_tokenizer
from transformers import PreTrainedTokenizerBase

from lit_attr.errors import UserError
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import Fact
from lit_attr.facts.tokenization import build_contrasts


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in text.split())


def fact(subject: str = "Spain", true: str = " Madrid", false: str = " Paris", prompt: str | None = None) -> Fact:
    prompt = prompt or f"The capital of {subject} is"
    return Fact(3, 17, prompt, subject, prompt.index(subject), true, false, "P36")


def only(found: tuple[list[Contrast], list]) -> Contrast:
    contrasts, rejected = found
    assert not rejected
    assert len(contrasts) == 1
    return contrasts[0]


def test_a_fact_becomes_a_contrast():
    contrast = only(build_contrasts([fact()], word_tokenizer()))
    assert contrast.token_ids == ids("The capital of Spain is")
    assert contrast.tokens == ("The", " capital", " of", " Spain", " is")
    assert contrast.subject_span == (3, 4)
    assert contrast.roles == ("prefix", "prefix", "prefix", "last subject", "last")
    assert (contrast.true_token, contrast.false_token) == (" Madrid", " Paris")
    assert (contrast.true_token_id, contrast.false_token_id) == ids("Madrid Paris")
    assert contrast.step == 0


def test_shared_answer_tokens_are_appended_to_the_prompt():
    contrast = only(build_contrasts([fact(true=" New York", false=" New Orleans")], word_tokenizer()))
    assert contrast.step == 1
    assert contrast.token_ids == ids("The capital of Spain is New")
    assert (contrast.true_token, contrast.false_token) == (" York", " Orleans")
    assert contrast.roles[-3:] == ("last subject", "first subsequent", "last")


def test_answers_of_unequal_length_are_compared_at_their_first_tokens():
    contrast = only(build_contrasts([fact(true=" New York City", false=" Rome")], word_tokenizer()))
    assert contrast.token_ids == ids("The capital of Spain is")
    assert (contrast.true_token_id, contrast.false_token_id) == ids("New Rome")


def test_later_steps_have_the_true_answer_as_context():
    found, rejected = build_contrasts(
        [fact(true=" New York City", false=" Rome Paris")], word_tokenizer(), step="all"
    )
    assert not rejected
    assert [(c.step, c.true_token, c.false_token) for c in found] == [(0, " New", " Rome"), (1, " York", " Paris")]
    assert found[1].token_ids == ids("The capital of Spain is New")


@pytest.mark.parametrize("step", ["divergence", "all"])
def test_rejects_an_answer_that_is_a_prefix_of_the_other(step: str):
    found, rejected = build_contrasts([fact(true=" New York", false=" New")], word_tokenizer(), step=step)
    assert not found
    assert (rejected[0].row, rejected[0].id) == (3, 17)
    assert rejected[0].reason == (
        "the answers ' New York' and ' New' have the same tokens as far as the shorter one goes"
    )


def test_rejects_a_prompt_that_merges_with_an_answer():
    found, rejected = build_contrasts([fact(false=" Rome")], word_tokenizer(merges=True))
    assert not found
    assert rejected[0].reason == "the tokenizer merges the prompt's end with the answer ' Rome'"


def test_rejects_answers_with_the_same_tokens():
    found, rejected = build_contrasts([fact(true=" New York", false=" New  York")], word_tokenizer())
    assert not found
    assert rejected[0].reason == "the answers ' New York' and ' New  York' have the same tokens"


def test_rejects_an_answer_with_an_unknown_token():
    found, rejected = build_contrasts([fact(false=" New Lisbon")], word_tokenizer(), step="all")
    assert not found
    assert rejected[0].reason == "the tokenizer has no token for a part of the answer ' New Lisbon'"


def test_special_tokens_are_kept_before_the_prompt_and_dropped_after_it():
    contrast = only(build_contrasts([fact()], word_tokenizer("<s> $A </s>")))
    assert contrast.token_ids == ids("<s> The capital of Spain is")
    assert contrast.tokens[0] == "<s>"
    assert contrast.subject_span == (4, 5)
    assert (contrast.true_token_id, contrast.false_token_id) == ids("Madrid Paris")


@pytest.mark.parametrize(
    ("template", "add_bos_token", "context"),
    [
        ("$A", True, "<s> The capital of Spain is"),
        ("<s> $A", True, "<s> The capital of Spain is"),
        ("<s> $A </s>", False, "The capital of Spain is"),
        ("</s> $A", False, "The capital of Spain is"),
        ("</s> $A", True, "<s> The capital of Spain is"),
        ("</s> $A", None, "</s> The capital of Spain is"),
    ],
)
def test_add_bos_token_decides_what_stands_before_the_prompt(
    template: str, add_bos_token: bool | None, context: str
):
    contrast = only(build_contrasts([fact()], word_tokenizer(template), add_bos_token=add_bos_token))
    assert contrast.token_ids == ids(context)
    assert "".join(contrast.tokens[-5:]) == "The capital of Spain is"
    assert contrast.tokens[contrast.subject_span[0]] == " Spain"
    assert (contrast.true_token_id, contrast.false_token_id) == ids("Madrid Paris")


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("template", ["$A", "<s> $A"])
def test_a_prompt_with_its_own_bos_token_gets_no_second(template: str, add_bos_token: bool | None):
    prompt = fact(prompt="<s> The capital of Spain is")
    contrast = only(build_contrasts([prompt], word_tokenizer(template), add_bos_token=add_bos_token))
    assert contrast.token_ids == ids("<s> The capital of Spain is")
    assert "".join(contrast.tokens) == "<s> The capital of Spain is"
    assert contrast.subject_span == (4, 5)


def test_add_bos_token_needs_a_tokenizer_that_has_one(tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(UserError, match="^add_bos_token: the tokenizer has no beginning-of-sequence token"):
        build_contrasts([fact()], tokenizer, add_bos_token=True)


def test_a_subject_of_several_tokens_has_a_first_and_a_last():
    contrast = only(build_contrasts([fact("Costa Rica")], word_tokenizer()))
    assert contrast.subject_span == (3, 5)
    assert contrast.roles[3:] == ("first subject", "last subject", "last")


@pytest.mark.parametrize("subject", ["São Paulo", "東京都", "Владимир", "القاهرة", "a😀b", "e\u0301cole"])
def test_the_tokens_of_any_script_join_to_the_text(tokenizer: PreTrainedTokenizerBase, subject: str):
    contrast = only(build_contrasts([fact(subject)], tokenizer))
    assert "".join(contrast.tokens) == f"The capital of {subject} is"
    start, stop = contrast.subject_span
    assert "".join(contrast.tokens[start:stop]).strip() == subject


def test_answers_that_differ_within_a_character_show_the_names_of_their_tokens(
    tokenizer: PreTrainedTokenizerBase,
):
    # U+4E00 and U+4E01 share their first two bytes.
    contrast = only(build_contrasts([fact(true=" \u4e00", false=" \u4e01")], tokenizer))
    assert contrast.true_token != contrast.false_token
    assert contrast.true_token
    assert contrast.false_token


def test_no_facts_make_no_contrasts(tokenizer: PreTrainedTokenizerBase):
    assert build_contrasts([], tokenizer) == ([], [])


def test_a_slow_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch):
    tokenizer = word_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(UserError, match="^tokenizer: .* gives no character offsets; use its fast version"):
        build_contrasts([fact()], tokenizer)


def test_only_contrasts_whose_tokens_differ_are_contrastive():
    shared, differing = build_contrasts(
        [fact(true=" New York", false=" New Orleans")], word_tokenizer(), step="all"
    )[0]
    assert (shared.is_contrastive, differing.is_contrastive) == (False, True)
    assert (shared.key, differing.key) == ((17, 0), (17, 1))
