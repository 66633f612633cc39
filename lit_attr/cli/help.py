"""The short help of `lit-attr predict`: our settings by group, a line or two each."""

from __future__ import annotations

import re
import shutil
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Iterator
from typing import Any

USAGE = "lit-attr predict [--config FILE] [--NAME VALUE ...]"
# The groups in their order, each with what the names of its settings have before their last part.
TITLES = {
    "model": "Model: what is attributed, and how",
    "data": "Data: the facts",
    "writer": "Writer: records and pictures",
    "": "Run",
    "model.rule_options": "Less common: options of single rules",
    "model.ablation_options": "Less common: options of single ablations",
    "model.loading": "Less common: options of loading the model",
}
# The groups with a help of their own, `--GROUP.help`.
DETAILED = ("model", "data", "writer", "trainer")
LAST_LINES = (
    "The same in full, with types: --model.help, --data.help, --writer.help.",
    "Settings of Lightning's Trainer, such as --trainer.devices: --trainer.help.",
)

# How the sentence on a default that has no value of its own begins.
DEFAULT = "Default: "
NAME_COLUMNS, NESTED_INDENT = 28, 6
MIN_COLUMNS, MAX_COLUMNS = 60, 110


def group_of(action: Action) -> str:
    """The group of a setting: its name without the last part."""
    return action.dest.rpartition(".")[0]


def settings_by_group(actions: Iterable[Action]) -> dict[str, list[Action]]:
    """Our settings, those of each group in their order: by the keys of `TITLES`.

    Args:
        actions: The settings of the parser. Those of the Trainer are left out.
    """
    by_group: dict[str, list[Action]] = {group: [] for group in TITLES}
    for action in actions:
        # A group as a whole takes a file, which `--config` does as well.
        is_group = action.dest in TITLES or action.dest == "trainer"
        if group_of(action) in by_group and not is_group and not action.dest.endswith(".help"):
            by_group[group_of(action)].append(action)
    return by_group


def short_help(actions: Iterable[Action]) -> str:
    """The short help.

    Args:
        actions: The settings of the parser, each with its description. Those of the Trainer are left out.
    """
    columns = min(max(shutil.get_terminal_size().columns - 2, MIN_COLUMNS), MAX_COLUMNS)
    lines = [f"usage: {USAGE}", "", "Attributes the facts of a data set to a model's layers and tokens."]
    for group, members in settings_by_group(actions).items():
        lines += ["", f"{TITLES[group]}:"]
        for action in members:
            lines += _described(action, columns)
    return "\n".join([*lines, "", *LAST_LINES, ""])


def description(action: Action) -> tuple[list[str], str]:
    """The sentences that describe a setting, and its default in words; empty where its value says it."""
    sentences = re.split(r"(?<=\.)\s+(?=[^a-z])", " ".join((action.help or "").split()))
    for sentence in sentences:
        if sentence.startswith(DEFAULT):
            return [each for each in sentences if each != sentence], sentence.removeprefix(DEFAULT).rstrip(".")
    return sentences, ""


def _described(action: Action, columns: int) -> Iterator[str]:
    """A setting with the first sentence of its description and its default."""
    name = ", ".join(flag for flag in action.option_strings if not flag.endswith("+"))
    sentences, in_words = description(action)
    default = in_words or default_value(action.default)
    summary = sentences[0].rstrip(".")
    # Files have no default, and neither have flags that print something and exit.
    text = summary if action.default == SUPPRESS or action.dest == "config" else f"{summary} [{default}]"
    # Names of nested settings are too long for a column of their own.
    indent = NAME_COLUMNS if "." not in group_of(action) else NESTED_INDENT
    lines = textwrap.wrap(text, columns - indent)
    yield f"  {name}".ljust(indent) + (lines.pop(0) if len(name) + 4 <= indent else "")
    for line in lines:
        yield " " * indent + line


def default_value(default: Any) -> str:
    """A default as users write it."""
    if default is None:
        return "null"
    return str(default).lower() if isinstance(default, bool) else str(default)
