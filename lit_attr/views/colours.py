"""The colour scale of maps: blue for negative, white for zero, red for positive values.

Shape suffixes: L layers, N rows of the map (tokens or roles).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EMPTY = (238, 238, 238)

# ColorBrewer's RdBu from blue to red, safe for colour-blind readers, with a white middle and less dark ends.
ANCHORS = (
    "0f4784",
    "2166ac",
    "4393c3",
    "92c5de",
    "d1e5f0",
    "ffffff",
    "fddbc7",
    "f4a582",
    "d6604d",
    "b2182b",
    "860d27",
)
HALF_STEPS = 255


def _colour_table() -> NDArray[np.uint8]:
    """Colours of -1 to +1 in ``2 * HALF_STEPS + 1`` rows, of which the middle one is exactly white."""
    anchors = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS], dtype=float)
    at, stops = np.linspace(-1, 1, 2 * HALF_STEPS + 1), np.linspace(-1, 1, len(anchors))
    channels = [np.interp(at, stops, channel).round() for channel in anchors.T]
    return np.stack(channels, axis=1).astype(np.uint8)


TABLE = _colour_table()


def largest_magnitude(values: NDArray[np.floating]) -> float:
    """The largest magnitude, ignoring NaN; 0 where there is no value."""
    return float(np.nan_to_num(np.abs(values)).max(initial=0.0))


def scale_of(values_NL: NDArray[np.floating]) -> float:
    """The magnitude that gets the deepest colour: the largest below the first row.

    The first row is that of position 0, most often an attention sink, many times as large as the rest. It sets the
    scale only where no other value is non-zero.
    """
    return largest_magnitude(values_NL[1:]) or largest_magnitude(values_NL) or 1.0


def colours_of(values: NDArray[np.floating], scale: float) -> NDArray[np.uint8]:
    """The colours of values as RGB on a new last axis.

    Args:
        values: The values. NaN gets the colour of empty cells.
        scale: Magnitude from which values get the deepest colour.
    """
    steps = np.nan_to_num(np.clip(values / scale, -1, 1)) * HALF_STEPS
    colours: NDArray[np.uint8] = TABLE[steps.round().astype(int) + HALF_STEPS]
    colours[np.isnan(values)] = EMPTY
    return colours
