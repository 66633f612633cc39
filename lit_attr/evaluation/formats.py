"""What is known of the scores of number formats, from measurements on real models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """Agreement of gradient × activation in a number format with float32, on two real models.

    Pearson's correlation over all cells of 200 random CounterFact rows (`scripts/compare_formats.py`); None where
    the format overflowed.

    Attributes:
        name: The format's name in text.
        smollm2: On SmolLM2-135M.
        gemma: On Gemma 3 270M.
    """

    name: str
    smollm2: float | None
    gemma: float | None


MEASURED = {
    "bfloat16": Measured("bfloat16", 0.994, 0.999),
    "float16": Measured("float16", 1.000, None),
    "8bit": Measured("8-bit", 0.923, 0.977),
    "8bit, threshold 0": Measured("8-bit (llm_int8_threshold 0)", 0.901, 0.927),
    "4bit": Measured("4-bit", 0.620, 0.729),
}


def format_lines(settings: Mapping[str, Any], not_finite: int) -> Iterator[str]:
    """What the closing lines of a run say of its number format: none of float32.

    Args:
        settings: The model's settings in the run's manifest.
        not_finite: How many contrasts were refused because a number was not finite.
    """
    if settings.get("dtype") == "float16" and not_finite:
        yield (
            f"float16 overflowed: {not_finite} contrasts were refused, since a number was not finite; set dtype "
            "to bfloat16"
        )
    measured = MEASURED.get(_format_of(settings))
    if measured is not None and settings.get("rule") != "exact":
        yield (
            f"number format: between gradient × activation in {measured.name} and in float32 there was "
            f"{_shown(measured.smollm2)} on SmolLM2-135M and {_shown(measured.gemma)} on Gemma 3 270M"
        )


def _format_of(settings: Mapping[str, Any]) -> str:
    quantization = settings.get("quantization")
    if quantization == "8bit" and settings.get("llm_int8_threshold") == 0:
        return "8bit, threshold 0"
    return str(quantization or settings.get("dtype"))


def _shown(pearson: float | None) -> str:
    return "an overflow" if pearson is None else f"r = {pearson:.3f}"
