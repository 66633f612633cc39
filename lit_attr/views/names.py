"""Names that are safe in a logger's tag and in a file's path."""

from __future__ import annotations

import re

MAX_LENGTH = 100


def safe_tag(text: object) -> str:
    """Text from the data as one part of a tag or of a path, where a slash would open a group or a folder."""
    return re.sub(r"[^\w.-]", "_", str(text))[:MAX_LENGTH].lstrip(".") or "_"
