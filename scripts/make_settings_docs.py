"""Makes docs/settings.md from the parser of `lit-attr predict`: `python scripts/make_settings_docs.py`."""

from __future__ import annotations

from argparse import SUPPRESS, Action
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lit_attr.cli.help import TITLES, default_value, description, settings_by_group
from lit_attr.cli.prediction import DECLARATION, AttributionCLI
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.module import AttributionModule

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
INTRODUCTION = """# Settings

<!-- Made by scripts/make_settings_docs.py from the signatures of the classes. -->

Settings of `lit-attr predict`, as flags (`--model.layers '[0,-1]'`) and in YAML files:

```yaml
model:
  layers: [0, -1]
```

`lit-attr predict --help` prints them, `--model.help` with their types, `--trainer.help` those of Lightning's
Trainer, and `--print_config` all of them as YAML.
"""


class Declared(Exception):  # noqa: N818  # not an error
    """Carries the parser out of a command line that is not run."""

    def __init__(self, parser: LightningArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class DeclaringCLI(AttributionCLI):
    """A command line that stops where its settings are declared."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> NoReturn:
        """Raises the parser of `predict`."""
        raise Declared(self._subcommand_parsers["predict"])


def page() -> str:
    """The content of the page."""
    try:
        DeclaringCLI(AttributionModule, CounterfactDataModule, args=["predict"], **DECLARATION)
    except Declared as declared:
        parser = declared.parser
    lines = [INTRODUCTION]
    for group, members in settings_by_group(parser._actions).items():
        lines += [f"## {TITLES[group]}", "", "| setting | default | |", "|---|---|---|"]
        lines += [row for action in members for row in _row(action)]
        lines.append("")
    return "\n".join(lines)


def _row(action: Action) -> Iterator[str]:
    """A row of the table; the flags that print something and exit are in the introduction."""
    if action.default == SUPPRESS:
        return
    sentences, in_words = description(action)
    default = in_words or f"`{default_value(action.default)}`"
    text = " ".join(sentences)
    yield f"| `{action.dest}` | {default} | {text.replace('|', chr(92) + '|')} |"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
