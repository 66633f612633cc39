"""The layers of a model, as users name them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lit_attr.errors import ArgumentError

Layers = Sequence[int | str] | int | str
# As in Python.
SLICE = r"(-?\d+)?:(-?\d+)?(:(-?\d+)?)?"


def resolve_layers(layers: Layers, count: int) -> tuple[int, ...]:
    """Layer indices in ascending order, each once; negative ones count from the top.

    Args:
        layers: `all`, one index, or several: a list, or text such as `4-8` (8 included), `0:12:2` (as in Python,
            12 not included) or `0,4-8`; lists may hold such texts.
        count: How many layers the model has.

    Raises:
        ArgumentError: An index is out of range, there is none, or a text is none of these.
    """
    wanted = [
        layer for part in ([layers] if isinstance(layers, (int, str)) else layers) for layer in _each(part, count)
    ]
    for layer in wanted:
        if not -count <= layer < count:
            # YAML takes 1:2 for 1 · 60 + 2.
            hint = f"; YAML reads {layer // 60}:{layer % 60} as {layer}, put it in quotes" if layer >= 60 else ""
            raise ArgumentError(
                "layers", f"there is no layer {layer}; this model has {count}, 0 to {count - 1}{hint}"
            )
    if not wanted:
        raise ArgumentError("layers", "the list is empty; name a layer, or all")
    return tuple(sorted({layer % count for layer in wanted}))


def check_layers(layers: Layers) -> None:
    """Refuses a text that names no layers, before a model is loaded.

    Raises:
        ArgumentError: It is neither `all`, an index, nor several as of `resolve_layers`.
    """
    for part in [layers] if isinstance(layers, (int, str)) else layers:
        for _ in _each(part, 1):
            pass


def _each(part: int | str, count: int) -> Iterator[int]:
    """The layers of one index or of one text."""
    if isinstance(part, int):
        yield part
        return
    for word in part.replace(" ", "").split(","):
        bounds = [int(bound) if bound else None for bound in word.split(":")] if re.fullmatch(SLICE, word) else []
        if word == "all":
            yield from range(count)
        elif re.fullmatch(r"[+-]?\d+", word):
            yield int(word)
        elif ends := re.fullmatch(r"(\d+)[-–](\d+)", word):
            first, last = int(ends[1]), int(ends[2])
            if last < first:
                raise ArgumentError("layers", f"{word!r} ends before it begins; write {last}-{first}")
            # A model without so many layers names the first that it lacks.
            yield from range(first, min(last, max(first, count)) + 1)
        elif bounds and bounds[2:] != [0]:
            yield from range(count)[slice(*bounds)]
        else:
            raise ArgumentError(
                "layers", f"{part!r} is neither all, a layer, nor a list of layers such as 4-8, 0:12:2 or 0,4-8"
            )
