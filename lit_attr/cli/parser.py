"""The parser of `lit-attr predict`: mistakes in one line, and a help with our settings first."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace, _HelpAction
from collections.abc import Sequence
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lit_attr.cli.help import DETAILED, group_of, short_help
from lit_attr.module import AttributionModule
from lit_attr.settings import RENAMED
from lit_attr.text import print_error, print_text, readable

# Flags of earlier versions to the ones that took their place.
RENAMED_FLAGS = {
    "writer.verify": "model.verify",
    **{f"model.{name}": f"model.{nested}" for name, nested in RENAMED.items() if nested.endswith(f".{name}")},
}


class GroupHelp(_HelpAction):
    """A flag such as `--trainer.help`, which prints the settings of a group in full."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, help="Show the settings of this group in full and exit.")

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Prints the help and exits."""
        if isinstance(parser, OneLineParser):
            print_text(parser.format_group_help(self.dest.removesuffix(".help")).rstrip())
        parser.exit()


class OneLineParser(LightningArgumentParser):
    """A parser that reports a wrong setting in one line, without the usage of all others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would set another key than the one that was misspelt.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def add_class_arguments(self, theclass: type, nested_key: str | None = None, **kwargs: Any) -> list[str]:
        """Leaves out the settings that only Python can pass."""
        if issubclass(theclass, AttributionModule):
            kwargs["skip"] = {"model", "tokenizer"}
        added: list[str] = super().add_class_arguments(theclass, nested_key, **kwargs)
        return added

    def add_group_helps(self) -> None:
        """Adds a flag `--GROUP.help` for each group that the short help does not show in full."""
        for group in DETAILED:
            self.add_argument(f"--{group}.help", action=GroupHelp)

    def format_help(self, *args: Any) -> str:
        """Our settings, a line or two each."""
        return short_help(self._actions)

    def format_group_help(self, group: str) -> str:
        """The settings of a group and of those nested in it, with their whole descriptions and types."""
        everything = self._action_groups, self.usage, self.description
        self._action_groups = [
            each
            for each in self._action_groups
            if any(
                f"{group_of(action)}.".startswith(f"{group}.") and not isinstance(action, GroupHelp)
                for action in each._group_actions
            )
        ]
        self.usage, self.description = f"lit-attr predict [--{group}.NAME VALUE ...]", None
        try:
            text: str = super().format_help()
        finally:
            self._action_groups, self.usage, self.description = everything
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and exits with status 2."""
        line = _renamed_flag(message) or f"{readable(message)}; see lit-attr predict --help"
        print_error(f"lit-attr: error: {line}")
        sys.exit(2)


def _renamed_flag(message: str) -> str | None:
    """Names the new flag where the parser does not know one of an earlier version."""
    for old, new in RENAMED_FLAGS.items():
        group, _, name = old.partition(".")
        if re.search(
            rf"--{re.escape(old)}\b(?!\.)|\b{group}\b.*[Kk]ey[^.]*['\"]{name}['\"]|['\"]{old}['\"]", message
        ):
            return f"{old}: its name is {new} now"
    return None
