"""What a user did wrong, in one line, and the package's logger."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import NamedTuple

from lit_attr.text import printable

logger = logging.getLogger("lit_attr")

UNCHANGED: Mapping[str, str] = MappingProxyType({})
# Where launchers put the rank of a process; Lightning reads the same variables in the same order.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
MAX_SHOWN_CHARACTERS = 100


class UserError(Exception):
    """A mistake in a setting, a file or a model: one line that names it, what is wrong, and the fix.

    The command line prints the line and exits with status 1, without a traceback.
    """


class ArgumentError(UserError):
    """A mistake in one argument of a function or one setting of a class.

    Functions name their own argument; the caller adds its own name for it with :func:`arguments_of`.

    Args:
        argument: The argument's name, dotted where it is nested in another.
        reason: What is wrong with it, and the fix.
        owner: Whose argument it is, such as `model` for `--model.layers`.
    """

    def __init__(self, argument: str, reason: str, owner: str | None = None) -> None:
        super().__init__(f"{_qualified(argument, owner)}: {reason}")
        self.argument = argument
        self.reason = reason
        self.owner = owner

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, str, str | None]]:
        # A loader's worker sends it to its parent.
        return type(self), (self.argument, self.reason, self.owner)


class ReportedError(UserError):
    """A mistake that another process of the run has reported already."""


class SharedModelError(UserError):
    """A process is gone, or out of step, without which the others that share its model can make no pass."""


class RowError(Exception):
    """Why one row cannot become a record. The run goes on without that row."""


class _Owner(NamedTuple):
    name: str
    renamed: Mapping[str, str]
    only: Collection[str]
    replaces_owner: bool


# The outermost first.
_owners: ContextVar[tuple[_Owner, ...]] = ContextVar("owners", default=())


@contextmanager
def arguments_of(
    owner: str,
    renamed: Mapping[str, str] = UNCHANGED,
    *,
    only: Collection[str] | None = None,
    replaces_owner: bool = False,
) -> Iterator[None]:
    """Re-raises an `ArgumentError` under the caller's name for the argument; warnings get that name as well.

    Args:
        owner: Whose settings they are: a group of the command line, or a class or function.
        renamed: Argument names to the owner's names, for those that differ.
        only: The arguments that belong to the owner. Default: all.
        replaces_owner: Rename errors that have an owner already, as for a function that users call in the place of
            several classes.

    Raises:
        ArgumentError: The error under its new name.
    """
    token = _owners.set((*_owners.get(), _Owner(owner, renamed, only or (), replaces_owner)))
    try:
        yield
    except ArgumentError as error:
        is_of_owner = only is None or error.argument in only
        if not is_of_owner or (error.owner is not None and not replaces_owner):
            raise
        raise ArgumentError(renamed.get(error.argument, error.argument), error.reason, owner) from error
    finally:
        _owners.reset(token)


def warn_about(argument: str, message: str) -> None:
    """Logs a warning about an argument, once a process, under the name that :func:`arguments_of` gives it."""
    owners = _owners.get()
    if owners:
        # The outermost owner is the one that the user called, but for arguments that are known to be of another.
        of_others = [] if owners[0].replaces_owner else [each for each in owners if argument in each.only]
        owner = of_others[-1] if of_others else owners[0]
        argument = _qualified(owner.renamed.get(argument, argument), owner.name)
    warn_once(f"{argument}: {message}")


def warn_once(message: str) -> None:
    """Logs a warning once a process, in the first process of a run only."""
    if _process_rank() == 0:
        logger.addFilter(is_first_time)
        # Names and texts from data and settings reach the terminal from here.
        logger.warning("%s", printable(message))


_logged: set[str] = set()


def is_first_time(record: logging.LogRecord) -> bool:
    """A filter for loggers: lets each message pass once a process."""
    message = record.getMessage()
    if message in _logged:
        return False
    _logged.add(message)
    return True


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Checks that a value is one of the words that an argument takes.

    Raises:
        ArgumentError: The value is not one of `choices`.
    """
    words = [*choices]
    if value not in words:
        raise ArgumentError(
            argument, f"{shown(value) if isinstance(value, str) else repr(value)} is not one of {', '.join(words)}"
        )


def shown(text: str) -> str:
    """A text in quotes, cut to what fits into a message."""
    return repr(text) if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]!r}..."


def one_line(error: BaseException, length: int = 200) -> str:
    """An error's message in one line, cut to `length` characters; its type where it has no message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:length]


def _qualified(argument: str, owner: str | None) -> str:
    return argument if owner is None else f"{owner}.{argument}"


def _process_rank() -> int:
    """The rank of this process in its run, 0 where there is only one; known before there is a Trainer."""
    ranks = (os.environ.get(name) for name in RANK_VARIABLES)
    return next((int(rank) for rank in ranks if rank is not None and rank.isdigit()), 0)
