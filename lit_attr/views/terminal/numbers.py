"""Numbers of a map in few characters."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Numbers(NamedTuple):
    """The numbers of a map, all in one unit.

    Attributes:
        exponent: The unit is ten to this power of a logit.
        decimals: The digits after the point.
        width: The characters of the longest.
    """

    exponent: int
    decimals: int
    width: int

    def text(self, value: float) -> str:
        """A number with its sign; 0 has none."""
        text = f"{value / 10.0**self.exponent:+.{self.decimals}f}"
        return text if text.strip("+-0.") else text[1:]

    @property
    def unit(self) -> str:
        """The unit of the numbers."""
        return f"1e{self.exponent} logits" if self.exponent else "logits"


def numbers_of(values: NDArray[np.floating], scale: float) -> Numbers:
    """How the values of a map are written: with three digits, or two after the point, at its scale.

    Args:
        values: All values of the map.
        scale: The magnitude that gets the deepest colour.
    """
    power = math.floor(math.log10(scale))
    exponent = 0 if -2 <= power <= 3 else 3 * (power // 3)
    numbers = Numbers(exponent, max(0, min(2, 2 - (power - exponent))), 0)
    ends = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    return numbers._replace(width=max(len(numbers.text(end)) for end in ends))
