"""What tests of exact effects share."""

from __future__ import annotations

import pytest

from lit_attr.attribution.exact import effects


@pytest.fixture(autouse=True)
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings; there is none where runs are shared."""
    messages: list[str] = []
    monkeypatch.setattr(effects, "warn_once", messages.append)
    return messages
