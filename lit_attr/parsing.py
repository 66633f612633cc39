"""The messages of jsonargparse in one line."""

from __future__ import annotations

import re

# What YAML can hold and no setting has.
TOO_DEEP = "a value is nested too deeply; give one that has the form of the setting"


def readable(message: str) -> str:
    """The parser's message about a setting, as `KEY: 'VALUE' is not TYPE` where a value has the wrong type."""
    line = " ".join(re.sub(r'Parser key "(.*?)":', r"\1:", message).split())
    wrong_type = re.fullmatch(r"(?P<key>\S+): Expected an? (?P<types>.*?)\. Got value: (?P<value>.*)", line)
    wrong_types = re.fullmatch(
        r"(?P<key>\S+): .*Subtypes: \[(?P<types>.*)\] Errors: .* Given value: (?P<value>.*)", line
    )
    if not (found := wrong_types or wrong_type):
        return line
    types = re.sub(r"<class '(.*?)'>|typing\.Literal\[(.*?)\]", r"\1\2", found["types"]).replace(
        "NoneType", "null"
    )
    return f"{found['key']}: {found['value']!r} is not {' or '.join(types.replace(chr(39), '').split(', '))}"
