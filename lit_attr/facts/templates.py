"""Prompts of the user's own making: a text with columns of the row in it."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import NamedTuple

from lit_attr.errors import UserError, shown


class Template(NamedTuple):
    """A text with places for columns.

    Attributes:
        pieces: A stretch of text and the column that comes after it, again and again; none after the last.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each once."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))

    def fill(self, values: Mapping[str, str]) -> tuple[str, dict[str, int]]:
        """The text with a row's values in it, and where each column begins first, in characters."""
        text, begins = "", dict[str, int]()
        for stretch, column in self.pieces:
            text += stretch
            if column is not None:
                begins.setdefault(column, len(text))
                text += values[column]
        return text, begins


def parse_template(text: str) -> Template:
    """Reads a template such as `Q: {prompt} A:`; `{{` and `}}` stand for braces.

    Raises:
        UserError: A brace is left open, what is in braces is no name, or no column is named at all.
    """
    mend = "write {column} for a column, and {{ or }} for a brace"
    try:
        parsed = [*Formatter().parse(text)]
    except ValueError as error:
        raise UserError(f"data.template: {shown(text)} cannot be read ({error}); {mend}") from error
    for _, column, spec, conversion in parsed:
        if column is not None and (spec or conversion or not column.strip() or set(column) & set(".[")):
            told = f"{{{column}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
            raise UserError(f"data.template: in {shown(text)}, {told} does not name a column; {mend}")
    template = Template(tuple((stretch, column) for stretch, column, _, _ in parsed))
    if not template.columns:
        raise UserError(f"data.template: {shown(text)} names no column, so all prompts would be the same; {mend}")
    return template
