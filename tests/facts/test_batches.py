"""Contrasts side by side as tensors."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader
from toys import WORDS, word_tokenizer

from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast, Donor
from lit_attr.facts.rows import read_facts
from lit_attr.facts.tokenization import build_contrasts

ROWS = [("Spain", "Madrid"), ("Costa Rica", "Rome"), ("Spain", "New York")]


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture
def contrasts() -> list[Contrast]:
    rows = [
        {
            "prompt": f"The capital of {subject} is",
            "subject": subject,
            "target_true": true,
            "target_false": "Paris",
        }
        for subject, true in ROWS
    ]
    contrasts, rejected = build_contrasts(read_facts(rows).facts, word_tokenizer())
    assert not rejected
    return contrasts


def same(batch: ContrastBatch, other: ContrastBatch) -> bool:
    tensors = zip(batch[1:5], other[1:5], strict=True)
    return batch.contrasts == other.contrasts and all(torch.equal(mine, its) for mine, its in tensors)


def test_collates_with_padding_on_the_right(contrasts: list[Contrast]):
    batch = collate_contrasts(contrasts[:2])
    assert batch.token_ids_BT.tolist() == [ids("The capital of Spain is is"), ids("The capital of Costa Rica is")]
    assert batch.last_B.tolist() == [4, 5]
    assert batch.true_token_ids_B.tolist() == ids("Madrid Rome")
    assert batch.false_token_ids_B.tolist() == ids("Paris Paris")
    assert batch.contrasts == tuple(contrasts[:2])
    assert batch.token_ids_BT.dtype == torch.int64
    assert batch.places is batch.comparison is None


def test_places_follow_their_contrasts(contrasts: list[Contrast]):
    batch = collate_contrasts(contrasts, places=[5, None, 0])
    assert batch.places == (5, None, 0)
    assert batch.select([2, 0]).places == (0, 5)
    assert [half.places for half in batch.split()] == [(5,), (None, 0)]
    assert batch.to("cpu").places == batch.clone().places == (5, None, 0)
    assert collate_contrasts(contrasts).select([0]).places is None


def test_the_comparison_stays_with_the_batch(contrasts: list[Contrast]):
    batch = collate_contrasts(contrasts[:1], [3], (2, 16))
    for other in (batch, batch.to("cpu"), batch.clone(), batch.select([0]), batch.split()[1]):
        assert other.comparison == (2, 16)
        assert same(other, batch)


def test_a_part_of_a_batch_is_as_wide_as_the_whole(contrasts: list[Contrast]):
    batch = collate_contrasts(contrasts)
    first, second = batch.split()
    assert first.contrasts + second.contrasts == batch.contrasts
    assert torch.equal(torch.cat([first.token_ids_BT, second.token_ids_BT]), batch.token_ids_BT)
    assert same(batch.select([1]), collate_contrasts(contrasts[1:2]))
    assert batch.select([0]).token_ids_BT.shape == (1, 6)


def test_donors_travel_with_their_contrasts(contrasts: list[Contrast]):
    prompts = ("The capital of Rica is", "The City of New York is", "The capital of Paris is")
    given = [
        contrast._replace(donor=Donor(f"donor {row}", tuple(ids(prompt))))
        for row, (contrast, prompt) in enumerate(zip(contrasts, prompts, strict=True))
    ]
    batch = collate_contrasts(given, width=7)
    # As wide as the contrasts.
    padding = (" is is", " is", " is is")
    assert batch.donor_token_ids_BT.tolist() == [
        ids(each + more) for each, more in zip(prompts, padding, strict=True)
    ]
    assert batch.token_ids_BT.shape == batch.donor_token_ids_BT.shape
    assert [each.donor.id for each in batch.select([2, 0]).contrasts] == ["donor 2", "donor 0"]
    assert torch.equal(batch.select([2, 0]).donor_token_ids_BT, batch.donor_token_ids_BT[[2, 0]])
    halves = torch.cat([half.donor_token_ids_BT for half in batch.split()])
    assert torch.equal(halves, batch.donor_token_ids_BT)
    assert batch.to("meta").donor_token_ids_BT.device.type == "meta"
    clone = batch.clone()
    clone.donor_token_ids_BT.zero_()
    assert batch.donor_token_ids_BT.any()
    for without in (contrasts, [given[0], contrasts[1]]):
        batch = collate_contrasts(without)
        assert batch.donor_token_ids_BT is batch.select([0]).to("cpu").clone().donor_token_ids_BT is None


def test_a_clone_shares_no_memory(contrasts: list[Contrast]):
    batch = collate_contrasts(contrasts)
    clone = batch.clone()
    clone.token_ids_BT.zero_()
    assert same(batch, collate_contrasts(contrasts))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a CUDA device")
def test_a_loader_pins_a_batch(contrasts: list[Contrast]):
    (batch,) = DataLoader(contrasts, batch_size=3, collate_fn=collate_contrasts, pin_memory=True)
    assert all(tensor.is_pinned() for tensor in batch[1:5])
    assert same(batch, collate_contrasts(contrasts))
    assert same(batch.to("cuda").to("cpu"), batch)
