"""Finding text in pictures, pixel by pixel."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lit_attr.views import sheet
from lit_attr.views.labels import text_mask

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


def place(
    image: Image.Image,
    box: Box,
    text: str,
    size: int = sheet.TEXT,
    colour: Colour = sheet.INK,
    strong: bool = False,
) -> tuple[float, float] | None:
    """The middle of the first place in the box where the text stands on white, or None."""
    mask = text_mask(text, size, strong)
    wanted = Image.new("RGB", mask.size, "white")
    wanted.paste(colour, mask=mask)
    wanted_hw, area_hw = (np.asarray(part.convert("L")) for part in (wanted, image.crop(box)))
    windows = np.lib.stride_tricks.sliding_window_view(area_hw, wanted_hw.shape)
    finds = np.argwhere((windows == wanted_hw).all(axis=(2, 3)))
    return (box[0] + finds[0][1] + mask.width / 2, box[1] + finds[0][0] + mask.height / 2) if len(finds) else None


def place_upright(image: Image.Image, text: str, size: int = sheet.TEXT) -> tuple[float, float] | None:
    """The same for text that reads from the bottom to the top, anywhere in the picture."""
    turned = image.rotate(-90, expand=True)
    found = place(turned, (0, 0, *turned.size), text, size)
    return (found[1], image.height - found[0]) if found else None


def shows(
    image: Image.Image,
    box: Box,
    text: str,
    size: int = sheet.TEXT,
    colour: Colour = sheet.INK,
    strong: bool = False,
) -> bool:
    """Whether the text stands in the box."""
    return place(image, box, text, size, colour, strong) is not None
