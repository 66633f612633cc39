"""How the numbers of a map are written."""

from __future__ import annotations

import numpy as np
import pytest

from lit_attr.views.terminal.numbers import numbers_of


@pytest.mark.parametrize(
    ("values", "scale", "texts", "unit"),
    [
        ([0.4, -0.963, 0.001], 0.963, ["+0.40", "-0.96", "0.00"], "logits"),
        # Position 0 is beyond the scale.
        ([123.4, -1.5, 0], 1.5, ["+123.40", "-1.50", "0.00"], "logits"),
        ([12.34, -9.87, -0.04], 12.34, ["+12.3", "-9.9", "0.0"], "logits"),
        ([4321, -20], 4321, ["+4321", "-20"], "logits"),
        ([0.00123, -0.0004], 0.00123, ["+1.23", "-0.40"], "1e-3 logits"),
        ([4.5e-7, -1e-8], 4.5e-7, ["+450", "-10"], "1e-9 logits"),
        ([2.5e7, -1e6], 2.5e7, ["+25.0", "-1.0"], "1e6 logits"),
        ([0.0, 0.0], 1.0, ["0.00", "0.00"], "logits"),
    ],
)
def test_numbers(values: list[float], scale: float, texts: list[str], unit: str):
    numbers = numbers_of(np.array(values), scale)
    assert [numbers.text(value) for value in values] == texts
    assert numbers.unit == unit
    assert numbers.width == max(map(len, texts))
