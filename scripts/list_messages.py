#!/usr/bin/env python
"""Lists every error message of the package as a Markdown table: where it is raised, its setting, and its text.

The messages are found in the source: arguments of `ArgumentError`, `UserError`, `RowError`, `parser.error` and the
like, with variables in braces. `--untested` lists those of which no test has the literal text. Messages that
only pass on another text are not among them.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "lit_attr"
TESTS = PACKAGE.parent / "tests"
# The names of what is raised or called with a message, and which of the arguments it is.
CALLS = {
    "ArgumentError": 1,
    "UserError": 0,
    "ReportedError": 0,
    "RowError": 0,
    "Stopped": 0,
    "warn_about": 1,
    "warn_once": 0,
    "error": 0,
    "_fail": 1,
}
MAX_LENGTH = 300  # characters
# A value in a message has about so many characters.
TYPICAL = 20
# A test means a message where one of its strings has so many characters of the text in a row, from the beginning
# of a word, or all the text between two variables where that is shorter. Where other messages have these as well,
# the string has to name the setting too, or to be the whole message.
ENOUGH, SHORTEST = 16, 8


class Message(NamedTuple):
    """A message in the source.

    Attributes:
        where: The file and the line.
        kind: What is raised or called.
        setting: The argument that it names, where it names one in the source.
        text: The message, with variables in braces.
    """

    where: str
    kind: str
    setting: str
    text: str

    @property
    def length(self) -> int:
        """About how many characters it has with values."""
        return len(re.sub(r"\{[^{}]*\}", "x" * TYPICAL, self.text)) + len(self.setting)

    @property
    def marks(self) -> set[str]:
        """Parts of the text that a test may have: what is wrong, or the fix where values say what is wrong."""
        return _parts(self.text.rpartition(";")[0]) or self.fixes

    @property
    def fixes(self) -> set[str]:
        """Parts of the fix, or of a text without one."""
        return _parts(self.text.rpartition(";")[2])

    @property
    def whole(self) -> re.Pattern[str]:
        """The whole text with any values, but for a file's name at its beginning; it may name an owner before."""
        pieces = re.split(r"\{[^{}]*\}", re.sub(r"^\{[^{}]*\}: ", "", self.text))
        return re.compile(rf"(.*: )?{'.+'.join(map(re.escape, pieces))}")


def _parts(text: str) -> set[str]:
    """The parts of a text without its values that are long enough to know it by."""
    found = set()
    for part in re.split(r"\{[^{}]*\}", text):
        words = part.strip(" ,:()'")
        if SHORTEST <= len(words) < ENOUGH:
            found.add(words)
        starts = [match.start() for match in re.finditer(r"\S+", words)]
        found |= {words[start : start + ENOUGH] for start in starts if start + ENOUGH <= len(words)}
    return found


def find_messages(package: Path = PACKAGE) -> list[Message]:
    """All messages of a package, by file and line."""
    return [
        message
        for path in sorted(package.rglob("*.py"))
        for message in _messages_of(ast.parse(path.read_text()), path.relative_to(package.parent))
    ]


def untested(messages: Sequence[Message], tests: Path = TESTS) -> list[Message]:
    """The messages of whose own text no test has a part."""
    strings = [text for path in sorted(tests.rglob("test_*.py")) for text in _strings(path)]
    everything = "\n".join(strings)
    # The texts of one place are one message with other words for one of its parts.
    places_of: dict[str, set[str]] = {}
    texts_of: dict[str, set[str]] = {}
    for message in messages:
        for mark in message.marks | message.fixes:
            places_of.setdefault(mark, set()).add(message.where)
            texts_of.setdefault(mark, set()).add(message.text)

    def is_tested(message: Message) -> bool:
        marks = message.marks
        own = {each for each in marks | message.fixes if 1 in (len(places_of[each]), len(texts_of[each]))}
        named = [each for each in strings if message.setting and message.setting in each]
        return (
            any(mark in everything for mark in own)
            or any(mark in each for each in named for mark in marks)
            or any(message.whole.fullmatch(each.strip("^$")) for each in strings)
        )

    return [message for message in messages if message.marks and not is_tested(message)]


def _strings(path: Path) -> Iterator[str]:
    """The strings of a file but its docstrings, without the marks of regular expressions."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            whole = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            whole = node.value
        else:
            continue
        yield " ".join(re.sub(r"\\(?=[^\w\s])", "", whole).split())


def _messages_of(tree: ast.AST, path: Path) -> Iterator[Message]:
    for function in _scopes(tree):
        assigned = _assigned(function)
        for node in _own_nodes(function):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            place = CALLS.get(name)
            if place is None or len(node.args) <= place or (name == "error" and not _is_parser(node.func)):
                continue
            for text in _texts(node.args[place], assigned):
                setting = next(_texts(node.args[0], assigned), "") if place else ""
                if re.sub(r"\{[^{}]*\}", "", text).strip():
                    yield Message(f"{path}:{node.lineno}", name, setting, " ".join(text.split()))


def _is_parser(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "parser"
    )


def _scopes(tree: ast.AST) -> Iterator[ast.AST]:
    """The module and its functions."""
    yield tree
    yield from (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of the functions in it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from _own_nodes(child)


def _assigned(scope: ast.AST) -> Mapping[str, list[ast.expr]]:
    """What a scope assigns to each name."""
    found: dict[str, list[ast.expr]] = {}
    for node in _own_nodes(scope):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            pairs = (
                zip(target.elts, value.elts, strict=False)
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                else [(target, value)]
            )
            for name, each in pairs:
                if isinstance(name, ast.Name):
                    found.setdefault(name.id, []).append(each)
    return found


def _texts(node: ast.expr, assigned: Mapping[str, list[ast.expr]]) -> Iterator[str]:
    """The texts that an expression may have; variables in braces."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        texts = [""]
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            more = [*dict.fromkeys(_texts(inner, _only_texts(assigned)))]
            texts = [text + each for text in texts for each in more]
        yield from texts
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body, assigned), *_texts(node.orelse, assigned))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from (a + b for a in _texts(node.left, assigned) for b in _texts(node.right, assigned))
    elif isinstance(node, ast.Name) and node.id in assigned:
        for value in assigned[node.id]:
            # A name that is assigned to itself would have no end.
            yield from _texts(value, {name: each for name, each in assigned.items() if name != node.id})
    else:
        yield f"{{{_name(node)}}}"


def _only_texts(assigned: Mapping[str, list[ast.expr]]) -> Mapping[str, list[ast.expr]]:
    """The names to which nothing but texts in the source is assigned, so that they are no values."""
    return {
        name: values
        for name, values in assigned.items()
        if all(any(isinstance(each, ast.JoinedStr) or _is_text(each) for each in _ends(value)) for value in values)
    }


def _ends(value: ast.expr) -> list[ast.expr]:
    """The two ends of a conditional expression, or the expression."""
    return [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _name(node: ast.expr) -> str:
    """An expression in a few characters."""
    return re.sub(r"[{}\n|]", "", ast.unparse(node))[:40]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--untested", action="store_true", help="only the messages that no test has")
    messages = find_messages()
    if parser.parse_args().untested:
        messages = untested(messages)
    print("| where | raised by | setting | message |", "|---|---|---|---|", sep="\n")
    for message in messages:
        cells = [message.where, message.kind, message.setting, message.text]
        print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")


if __name__ == "__main__":
    main()
