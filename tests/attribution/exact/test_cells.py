"""Which cells go through the model together."""

from __future__ import annotations

import torch

from lit_attr.attribution.exact.cells import PASS_TOKENS, Cells, most_shared, passes


def cells_of(*cells: tuple[int, int, int]) -> Cells:
    return Cells(*torch.tensor(sorted(cells)).unbind(1))


def passes_of(cells: Cells, lengths: list[int], max_tokens: int) -> list[list[tuple[int, int, int]]]:
    found = [torch.stack([*cells.select(index_N)], 1) for index_N in passes(cells, lengths, max_tokens)]
    return [[tuple(cell) for cell in each.tolist()] for each in found]


def test_a_pass_has_the_cells_of_one_token_by_layer():
    cells = cells_of((0, 2, 1), (0, 0, 1), (1, 1, 1), (1, 0, 3))
    expected = [[(0, 0, 1), (1, 1, 1), (0, 2, 1)], [(1, 0, 3)]]
    assert passes_of(cells, [4, 4], 100) == expected


def test_a_pass_has_no_more_tokens_than_allowed_but_the_layers_of_a_row():
    cells = cells_of((0, 0, 1), (0, 1, 1), (1, 0, 1), (2, 0, 1))
    # Three tokens are left at token 1.
    for max_tokens, sizes in ((12, [4]), (11, [3, 1]), (9, [3, 1]), (8, [2, 2]), (1, [2, 1, 1])):
        assert [len(each) for each in passes_of(cells, [4, 4, 4], max_tokens)] == sizes


def test_rows_of_unlike_lengths_are_apart_where_padding_costs_more_than_a_pass():
    cells = cells_of((0, 0, 0), (1, 0, 0), (2, 0, 0))
    short = 3
    for padding, sizes in ((PASS_TOKENS, [2, 1]), (PASS_TOKENS + 1, [1, 2]), (PASS_TOKENS // 2, [3])):
        lengths = [short + padding, short, short]
        assert [len(each) for each in passes_of(cells, lengths, 1000)] == sizes


def test_the_cell_that_shares_most_is_in_the_middle_of_a_low_layer():
    # Tokens before × tokens left × layers from there on: 0, 6 and 12; then 2 and 4.
    cells = cells_of((0, 0, 0), (0, 1, 2), (0, 0, 3), (1, 1, 1), (1, 0, 1))
    index_N = most_shared(cells, [5, 3], 2)
    assert [tuple(cell) for cell in torch.stack([*cells.select(index_N)], 1).tolist()] == [(0, 0, 3), (1, 0, 1)]
