"""What went wrong, in the user's words."""

from __future__ import annotations


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
