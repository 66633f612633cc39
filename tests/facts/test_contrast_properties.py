"""Properties of every contrast, for generated subjects, prompts and answers and every kind of tokenizer.

The bytes of a token are read from its name in the vocabulary, independently of the offsets that the code uses.
"""

from __future__ import annotations

import unicodedata
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES, LOSSLESS, SCRIPTS, family, spelled

from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.roles import ROLES, role_mask_RT
from lit_attr.facts.rows import read_facts
from lit_attr.facts.tokenization import build_contrasts

words = st.sampled_from(sorted(SCRIPTS)).flatmap(lambda script: st.text(SCRIPTS[script], min_size=1, max_size=6))
known_words = st.sampled_from(["The", "capital", "of", "Spain", "New", "York", "Rome", "Paris", "is", "in"])
phrases = st.lists(words | known_words, min_size=1, max_size=3).map(" ".join)
befores = st.just("") | phrases.map("{} ".format) | words
afters = st.just("") | phrases.map(" {}".format) | words
# Some answers begin alike, so that later steps occur; some have spaces around them.
spaces = st.sampled_from(["", " "])
heads = st.just("") | phrases.map("{} ".format) | words
answers = st.tuples(heads, phrases, phrases).map(lambda parts: (parts[0] + parts[1], parts[0] + parts[2]))
steps = st.sampled_from(["divergence", "all"])
bos = st.sampled_from([None, True, False])

for_every_family = pytest.mark.parametrize("name", FAMILIES)
quickly = settings(derandomize=True, deadline=None, max_examples=60)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, str]:
    before, subject, after = draw(befores), draw(phrases), draw(afters)
    true, false = (f"{draw(spaces)}{answer}{draw(spaces)}" for answer in draw(answers))
    return {
        "relation": f"{before}{{}}{after}",
        "prompt": f"{before}{subject}{after}",
        "subject": subject,
        "target_true": true,
        "target_false": false,
    }


def contrasts_of(row: dict[str, str], name: str, step: str, add_bos_token: bool | None) -> list[Contrast]:
    """The contrasts of a row; also checks that a row without any has exactly one reason."""
    table = read_facts([row])
    assert len(table.facts) + len(table.rejected) == 1
    if add_bos_token and family(name).bos_token is None:
        add_bos_token = None
    contrasts, rejected = build_contrasts(table.facts, family(name), step=step, add_bos_token=add_bos_token)
    assert bool(contrasts) + len(rejected) + len(table.rejected) == 1
    assert all(refused.reason for refused in rejected + table.rejected)
    assert len({contrast.key for contrast in contrasts}) == len(contrasts)
    return contrasts


def text_tokens(contrast: Contrast, name: str) -> int:
    """The number of special tokens before the text."""
    return int(contrast.tokens[0] in family(name).all_special_tokens)


def end_of(contrast: Contrast) -> int:
    return contrast.fact.subject_start + len(contrast.fact.subject)


def bare(text: str) -> str:
    """The text without what a normaliser may drop: marks and invisible characters."""
    return "".join(letter for letter in text if unicodedata.category(letter)[0] not in "MC")


@for_every_family
@given(row=rows(), step=steps, add_bos_token=bos)
@quickly
def test_the_tokens_join_to_the_context(name: str, row: dict[str, str], step: str, add_bos_token: bool | None):
    for contrast in contrasts_of(row, name, step, add_bos_token):
        fact = contrast.fact
        context = "".join(contrast.tokens[text_tokens(contrast, name) :])
        assert (fact.prompt + fact.target_true).startswith(context)
        assert context.startswith(fact.prompt)
        if contrast.step == 0:
            assert context == fact.prompt


@for_every_family
@given(row=rows(), step=steps, add_bos_token=bos)
@quickly
def test_the_span_covers_the_subject_and_no_further_token(
    name: str, row: dict[str, str], step: str, add_bos_token: bool | None
):
    for contrast in contrasts_of(row, name, step, add_bos_token):
        start, stop = contrast.subject_span
        pieces = contrast.tokens[start:stop]
        subject = contrast.fact.subject
        assert bare(subject).strip() in bare("".join(pieces))
        skip = text_tokens(contrast, name)
        cuts = [0, *accumulate(map(len, contrast.tokens[skip:]))]
        # The first token reaches into the subject, and the last begins before the subject ends.
        assert cuts[start - skip + 1] > contrast.fact.subject_start or not pieces[0]
        assert cuts[stop - skip - 1] < end_of(contrast) or not pieces[-1]
        if contrast.fact.subject_start in cuts[:-1] and end_of(contrast) in cuts:
            assert bare("".join(pieces)).strip() == bare(subject).strip()


@pytest.mark.parametrize("name", LOSSLESS)
@given(row=rows(), step=steps, add_bos_token=bos)
@quickly
def test_the_span_is_the_tokens_with_bytes_of_the_subject(
    name: str, row: dict[str, str], step: str, add_bos_token: bool | None
):
    for contrast in contrasts_of(row, name, step, add_bos_token):
        fact, skip = contrast.fact, text_tokens(contrast, name)
        pieces = spelled(name, contrast.token_ids[skip:])
        context = b"".join(pieces)
        space_before = len(context) - len(context.removeprefix(b" ")) if not fact.prompt.startswith(" ") else 0
        assert (fact.prompt + fact.target_true).encode().startswith(context[space_before:])
        begin = space_before + len(fact.prompt[: fact.subject_start].encode())
        end = begin + len(fact.subject.encode())
        stops = list(accumulate(map(len, pieces)))
        starts = [0, *stops[:-1]]
        held = [
            place
            for place, span in enumerate(zip(starts, stops, strict=True))
            if span[0] < end and span[1] > begin
        ]
        assert contrast.subject_span == (held[0] + skip, held[-1] + skip + 1)


@pytest.mark.parametrize("name", LOSSLESS)
@given(row=rows(), step=steps, add_bos_token=bos)
@quickly
def test_the_tokens_up_to_the_step_spell_the_answers(
    name: str, row: dict[str, str], step: str, add_bos_token: bool | None
):
    for contrast in contrasts_of(row, name, step, add_bos_token):
        fact, skip = contrast.fact, text_tokens(contrast, name)
        answer = contrast.token_ids[len(contrast.token_ids) - contrast.step :]
        before = b"".join(spelled(name, contrast.token_ids[skip : len(contrast.token_ids) - contrast.step]))
        assert before.removeprefix(b" ") == fact.prompt.encode().removeprefix(b" ")
        true = b"".join(spelled(name, (*answer, contrast.true_token_id)))
        assert fact.target_true.encode().startswith(true)
        if step == "divergence":
            assert contrast.is_contrastive
            false = b"".join(spelled(name, (*answer, contrast.false_token_id)))
            assert fact.target_false.encode().startswith(false)


@for_every_family
@given(row=rows(), step=steps, add_bos_token=bos)
@quickly
def test_every_token_has_one_role(name: str, row: dict[str, str], step: str, add_bos_token: bool | None):
    for contrast in contrasts_of(row, name, step, add_bos_token):
        start, stop = contrast.subject_span
        roles = contrast.roles
        assert len(roles) == len(contrast.tokens) == len(contrast.token_ids)
        assert set(roles[:start]) <= {"prefix"}
        assert set(roles[start + 1 : stop - 1]) <= {"middle subject"}
        assert [place for place, role in enumerate(roles) if role == "last subject"] == [stop - 1]
        after = ("first subsequent", *["further"] * len(roles))[: max(0, len(roles) - stop - 1)]
        assert roles[stop:] == (*after, "last")[: len(roles) - stop]
        mask_RT = role_mask_RT(roles, contrast.subject_span)
        counts = [2 if stop - start == 1 and place == start else 1 for place in range(len(roles))]
        assert mask_RT.sum(0).tolist() == counts
        assert np.flatnonzero(mask_RT[ROLES.index("first subject")]).tolist() == [start]
        assert np.flatnonzero(mask_RT[ROLES.index("last subject")]).tolist() == [stop - 1]
