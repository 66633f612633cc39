"""Batches of similar length, and their division among processes."""

from __future__ import annotations

import pytest

from lit_attr.facts.buckets import RankSampler, bucket_by_length, in_batches
from lit_attr.facts.contrasts import Contrast


def test_batches_are_sorted_by_length_the_longest_first():
    assert bucket_by_length([3, 9, 3, 5], max_rows=2) == [[1, 3], [0, 2]]


def test_padding_counts_towards_the_token_bound():
    # Two rows of 9 would take 18 tokens; 5 and 3 are padded to 5 each.
    assert bucket_by_length([3, 9, 9, 5], max_rows=8, max_padded_tokens=12) == [[1], [2], [3, 0]]


def test_a_row_longer_than_the_bound_is_a_batch_of_its_own():
    assert bucket_by_length([40, 2], max_rows=8, max_padded_tokens=10) == [[0], [1]]


def test_a_batch_has_lengths_of_one_class():
    lengths = [3, 9, 8, 3, 5]
    assert bucket_by_length(lengths, width_class=lambda length: length > 4) == [[1, 2, 4], [0, 3]]
    assert bucket_by_length(lengths, width_class=int) == [[1], [2], [4], [0, 3]]
    assert bucket_by_length(lengths, width_class=lambda _: 0) == bucket_by_length(lengths)


def test_no_rows_make_no_batches():
    assert bucket_by_length([], max_rows=4) == []


def test_contrasts_are_cut_at_both_bounds(sample_contrasts: list[Contrast]):
    contrasts = sample_contrasts[:40]
    batches = in_batches(contrasts, max_rows=8, max_tokens=64)
    assert sorted(each.key for batch in batches for each in batch) == sorted(each.key for each in contrasts)
    lengths = [[len(each.token_ids) for each in batch] for batch in batches]
    assert sum(lengths, []) == sorted(sum(lengths, []), reverse=True)
    assert all(len(each) <= 8 and len(each) * max(each) <= 64 for each in lengths)
    assert in_batches(contrasts) == [sorted(contrasts, key=lambda each: -len(each.token_ids))]


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 100, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_every_row_exactly_once(rows: int, world_size: int):
    batches = bucket_by_length([1 + row % 5 for row in range(rows)], max_rows=4, max_padded_tokens=11)
    samplers = [RankSampler(batches, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = [row for sampler in samplers for place in sampler for row in batches[place]]
    assert sorted(seen) == list(range(rows))
    assert sum(len(sampler) for sampler in samplers) == len(batches)
