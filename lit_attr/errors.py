"""What went wrong, in the user's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

AS_THEY_ARE: Mapping[str, str] = MappingProxyType({})


class UserError(Exception):
    """A mistake in a setting, a file or a model, told in one line that names it and the mend.

    The command line prints the line and exits with status 1, without a traceback.
    """


class ToldError(UserError):
    """A mistake that another process of the run has told of already."""


class RowError(Exception):
    """Why one row cannot become a record. The run goes on without that row."""


def shown(text: str) -> str:
    """A text in quotes, no longer than fits into a message."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}..."


@contextmanager
def told_of(owner: str, renamed: Mapping[str, str] = AS_THEY_ARE) -> Iterator[None]:
    """Tells a mistake as one in a setting of `owner`, by the owner's name of the setting.

    Args:
        owner: What has the settings.
        renamed: Our names of settings to the owner's, for those that differ.
    """
    try:
        yield
    except UserError as error:
        setting, _, reason = str(error).partition(":")
        name = setting.rpartition(".")[2]
        raise UserError(f"{owner}.{renamed.get(name, name)}:{reason}") from error
