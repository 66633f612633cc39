"""Names in tags and paths."""

from pathlib import Path

import pytest

from lit_attr.views.names import safe_tag


@pytest.mark.parametrize("text", ["../../etc/passwd", "..", "/abs", "a/b\\c", "x" * 300, "\ud800", ""])
def test_text_from_the_data_is_one_part_of_a_path(text: str):
    part = safe_tag(text)
    assert Path(part).name == part
    assert 0 < len(part) <= 100
    part.encode()
