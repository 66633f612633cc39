"""Maps on terminals of several widths, with and without colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Console

from lit_attr.views.colours import TABLE
from lit_attr.views.terminal.maps import MOST_TOKENS, Map, draw_maps, shown_tokens


def console(width: int, colours: str | None = "truecolor") -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=colours, highlight=False)


def drawn(
    values_LT: NDArray[np.float64], width: int, *, colours: str | None = "truecolor", maps: int = 1
) -> tuple[list[str], Console]:
    target = console(width, colours)
    layers, tokens = values_LT.shape
    names = [f"t{place}" for place in range(tokens)]
    lines = draw_maps(
        target,
        [[Map(f"map {place}", values_LT, None) for place in range(maps)]],
        layers=[*range(layers)],
        tokens=names,
        subject_span=(1, 2),
    )
    return [line.plain for line in lines], target


def numbered(layers: int, tokens: int) -> NDArray[np.float64]:
    """A different value in each cell, the largest 1."""
    return np.arange(1, layers * tokens + 1).reshape(layers, tokens) / (layers * tokens)


@pytest.mark.parametrize("colours", ["truecolor", "256", None])
@pytest.mark.parametrize("width", [24, 80, 200])
@pytest.mark.parametrize("layers", [1, 8, 30, 80])
def test_every_layer_and_token_is_there_and_fits(layers: int, width: int, colours: str | None):
    lines, _ = drawn(numbered(layers, 5), width, colours=colours)
    assert max(cell_len(line) for line in lines[:-1]) <= width
    for token in range(5):
        rows = [line for line in lines if line[1:].startswith(f"t{token}")]
        assert {row[0] for row in rows} == {"|" if token == 1 else " "}
        if colours is None:
            # A number a layer, however many rows it takes.
            numbers = [float(word) for row in rows for word in row.split()[1:]]
            np.testing.assert_allclose(numbers, numbered(layers, 5)[:, token], atol=0.00501)


def test_30_layers_have_room_in_80_columns():
    lines, _ = drawn(numbered(30, 5), 80)
    assert len([line for line in lines if line.startswith("|t1")]) == 1
    assert cell_len(next(line for line in lines if line.startswith("|t1"))) >= 60


def test_colours_are_those_of_the_heatmaps():
    values_LT = np.array([[0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    target = console(80)
    lines = [*draw_maps(target, [[Map("", values_LT)]], layers=[0, 1, 2], tokens=["a", "b"], subject_span=(0, 1))]
    row = next(line for line in lines if line.plain.startswith(" ␣b") or line.plain.startswith(" b"))
    found = [span.style.bgcolor.triplet for span in row.spans if getattr(span.style, "bgcolor", None)]
    # Red, blue and white.
    assert [tuple(each) for each in found] == [tuple(TABLE[place].tolist()) for place in (-1, 0, 255)]


def test_two_maps_stand_side_by_side_where_they_have_room():
    side, _ = drawn(numbered(6, 4), 200, maps=2)
    assert "map 0" in side[0] and "map 1" in side[0]
    below, _ = drawn(numbered(6, 4), 60, maps=2)
    assert "map 1" not in below[0] and any(line.startswith("map 1") for line in below)
    pipe, _ = drawn(numbered(6, 4), 1_000_000, maps=2, colours=None)
    assert "map 1" not in pipe[0]


def test_marks_and_their_legend():
    values_LT = np.array([[9.0, 1.0, 0.5]] * 12)
    is_exact_LT = np.zeros((12, 3), dtype=np.bool_)
    is_exact_LT[3, 2] = True
    for colours, mark in (("truecolor", "*"), (None, "+0.50*")):
        target = console(60, colours)
        lines = [
            line.plain
            for line in draw_maps(
                target,
                [[Map("", values_LT, is_exact_LT)]],
                layers=[*range(12)],
                tokens=["a", "b", "c"],
                subject_span=(0, 1),
            )
        ]
        rows = [line for line in lines if line.startswith(" c")]
        assert sum(row.count(mark) for row in rows) == 1
        assert "* exact effect" in lines[-1]
        # Position 0 is beyond the scale.
        assert ("#" in lines[-1]) == (colours is not None)


def test_of_many_tokens_those_with_large_values_are_shown():
    values_TL = np.zeros((1_000, 3))
    values_TL[500:600] = 1.0
    chosen = shown_tokens(values_TL)
    assert len(chosen) == MOST_TOKENS and chosen[0] == 0 and chosen[-1] == 999
    assert set(chosen[1:-1]) <= {*range(500, 600)}
    lines, _ = drawn(values_TL.T, 80)
    assert " … 499 tokens" in lines
    assert shown_tokens(np.zeros((3, 2))) == [0, 1, 2]
