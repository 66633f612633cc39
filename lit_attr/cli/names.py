"""A first look at the settings of `predict`: unknown names are reported before torch and Lightning are imported.

The names are those of the signatures from which LightningCLI makes its settings, read from the source files. Only
names are looked at. Whatever is not certain to be refused is left to LightningCLI, which parses all settings after
this.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lit_attr
from lit_attr.text import print_error

PACKAGE = Path(lit_attr.__file__).parent
# The class whose signature has the settings of a group, and its file.
SIGNATURES = {
    "model": (PACKAGE / "module.py", "AttributionModule"),
    "data": (PACKAGE / "datamodule.py", "CounterfactDataModule"),
    "writer": (PACKAGE / "callbacks" / "writer.py", "AttributionWriter"),
}
# The classes of nested settings.
NESTED = {
    "LoadingOptions": PACKAGE / "settings.py",
    "RuleOptions": PACKAGE / "attribution" / "catalogue.py",
    "AblationOptions": PACKAGE / "attribution" / "catalogue.py",
}
# What jsonargparse takes wherever a class is expected.
FORMS = frozenset({"class_path", "init_args", "dict_kwargs", "help"})

# The settings of a group; those that are nested in one by its name. None: any name is taken.
Names = Mapping[str, "frozenset[str] | None"]


def check_names(words: Sequence[str]) -> None:
    """Reports a setting of `predict` that no signature has, in words or in files that `--config` names.

    Args:
        words: The words after `predict`.

    Raises:
        SystemExit: 2, with one line on standard error.
    """
    for place, word in enumerate(words):
        if word == "--":
            break
        # A word with a space is a value.
        if not word.startswith("--") or " " in word:
            continue
        name, has_value, value = word[2:].partition("=")
        following = "" if has_value else next(iter(words[place + 1 :]), "")
        if name == "config":
            for key in _keys(value if has_value else following):
                if is_unknown(key):
                    _refuse(f"Subcommand 'predict' does not accept option '{key}'", key)
        elif is_unknown(name):
            shown = word if following.startswith("-") else f"{word} {following}".rstrip()
            _refuse(f"unrecognized arguments: {shown}", name)


def is_unknown(name: str) -> bool:
    """Whether a setting is in one of the groups, and none of its names.

    Args:
        name: The dotted name; a `+` at its end appends to a list.
    """
    group, _, rest = name.rstrip("+").partition(".")
    names = names_of(group)
    if names is None or not rest:
        return False
    first, *others = rest.split(".")
    if first in FORMS:
        return False
    if first not in names:
        # LightningCLI's parser says which name took the place of one of an earlier version.
        return rest.rpartition(".")[2] not in _all_names()
    nested = names[first]
    return bool(others) and nested is not None and others[0] not in nested | FORMS | _all_names()


@cache
def names_of(group: str) -> Names | None:
    """The settings of a group; None where they are not known."""
    if group == "trainer":
        return _names_in(_trainer_source(), "Trainer")
    if group not in SIGNATURES:
        return None
    return _names_in(*SIGNATURES[group])


@cache
def _all_names() -> frozenset[str]:
    """The settings of our groups, with those that are nested."""
    found: set[str] = set()
    for group in SIGNATURES:
        for name, nested in (names_of(group) or {}).items():
            found |= {name, *(nested or ())}
    return frozenset(found)


def _names_in(path: Path | None, name: str) -> Names | None:
    """The arguments of a class; None where the source is not there, or the class takes any."""
    found = None if path is None else _class_in(path, name)
    for each in found.body if found is not None else ():
        if isinstance(each, ast.FunctionDef) and each.name == "__init__" and each.args.kwarg is None:
            arguments = [*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs]
            return {argument.arg: _nested(argument.annotation) for argument in arguments[1:]}
    return None


def _nested(annotation: ast.expr | None) -> frozenset[str] | None:
    """The fields of the class that an argument has; None where it has another type."""
    if not isinstance(annotation, ast.Name) or annotation.id not in NESTED:
        return None
    found = _class_in(NESTED[annotation.id], annotation.id)
    if found is None:
        return None
    fields = (each.target for each in found.body if isinstance(each, ast.AnnAssign))
    return frozenset(each.id for each in fields if isinstance(each, ast.Name))


def _class_in(path: Path, name: str) -> ast.ClassDef | None:
    try:
        module = ast.parse(path.read_bytes())
    except (OSError, SyntaxError):
        return None
    return next((each for each in module.body if isinstance(each, ast.ClassDef) and each.name == name), None)


def _trainer_source() -> Path | None:
    # The package is found without importing it.
    spec = find_spec("lightning")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py"


def _keys(path: str) -> Iterator[str]:
    """The settings in a file, by dotted names; none where it is not a file that YAML can read."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return
    yield from _flat(content, "", 3)


def _flat(value: Any, prefix: str, depth: int) -> Iterator[str]:
    if depth == 0 or not isinstance(value, dict):
        return
    for key, each in value.items():
        if isinstance(key, str):
            yield f"{prefix}{key}"
            yield from _flat(each, f"{prefix}{key}.", depth - 1)


def _refuse(message: str, name: str) -> None:
    group = name.partition(".")[0]
    known = [
        f"{group}.{setting}{f'.{each}' if each else ''}"
        for setting, nested in (names_of(group) or {}).items()
        for each in ("", *(nested or ()))
    ]
    close = get_close_matches(name, known, 1)
    hint = f"; there is {close[0]}" if close else ""
    print_error(f"lit-attr: error: {message}{hint}; see lit-attr predict --help")
    sys.exit(2)
