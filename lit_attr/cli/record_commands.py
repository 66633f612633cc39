"""The commands of `lit-attr` that only read the records of runs; they import neither torch nor Lightning."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from lit_attr.cli.facts import facts
from lit_attr.cli.show import show
from lit_attr.errors import ArgumentError, UserError
from lit_attr.text import TOO_DEEP, print_error, print_text, readable

PROGRAM = "Attributes facts with `predict`; the other commands read the records of such runs."
PREDICT_HELP = "Attributes the facts of a data set to a model's layers and tokens."


class OneLineArgumentParser(ArgumentParser):
    """A parser that reports a mistake in one line, without its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and exits with status 2."""
        program = self.prog.replace(" [options]", "")
        print_error(f"{program}: error: {readable(message)}; see {program} --help")
        sys.exit(2)


def plot(
    out: list[Path],
    figures: Path | None = None,
    format: Literal["pdf", "svg", "png"] = "pdf",  # noqa: A002  # the name of the flag
    facts: int = 6,
    ids: list[int | str] | None = None,
    relations: int = 6,
    known: bool = False,
) -> None:
    """Draws figures for print from the records of runs.

    A run gets `facts` (a panel a fact: its tokens downwards, layers to the right), `roles` (mean score by token
    role and layer, of all contrasts and of known ones), `profiles` (a curve a role over the layers with its 95%
    confidence band, and sums over windows of ten layers) and `relations` (the map of `roles` for each of the
    largest relations); several runs get a `comparison` of their profiles as well.

    Args:
        out: Output folders of runs.
        figures: Folder for the figures. Default: `plots` in the first of the output folders.
        format: Format of the figures.
        facts: Number of facts that are drawn, evenly spread over the run, at most 24.
        ids: Ids of facts to draw instead.
        relations: Number of relations that are drawn, the largest, at most 24.
        known: Draw known facts only; `roles` shows both in any case.
    """
    from lit_attr.views.paper.figures import write_figures

    drawn = write_figures(
        out,
        figures=figures,
        format=format,
        facts=facts,
        ids=[*map(str, ids or ())],
        relations=relations,
        known=known,
    )
    for path in drawn:
        print_text(str(path))


def export(
    out: Path,
    to: Literal["parquet", "csv", "inseq"],
    output: Path | None = None,
    per: Literal["example", "layer"] | None = None,
    escape_formulas: bool = False,
    neurons: bool = False,
) -> None:
    """Writes the records of a run for other programs.

    `parquet` is one file with a row a contrast and nested scores, `csv` one file with a row a contrast, component,
    layer and token (read it in pandas with `keep_default_na=False`: tokens can be `NA`), `inseq` a folder of files
    for `inseq.FeatureAttributionOutput.load`. What is written is whole or not there at all, and nothing is
    overwritten. A spreadsheet that opens a CSV file may run texts from the data that begin with `=`, `+`, `-` or
    `@`, as tokens and ids can: set `escape_formulas` for one.

    Args:
        out: Output folder of a run.
        to: Format to write.
        output: File, or folder for Inseq's files. Default: in the output folder, named `attributions.parquet`,
            `attributions.csv` or `inseq`.
        per: With `inseq`, whether a file holds all layers of a contrast (`example`, the default) or one (`layer`).
        escape_formulas: With `csv`, put a `'` before each text that a spreadsheet would run as a formula.
        neurons: With `csv`, write a row a contrast and neuron instead, of a run with `model.top_neurons`.
    """
    from lit_attr.records.exports.export import export as write_export

    path = write_export(out, to, output=output, per=per, escape_formulas=escape_formulas, neurons=neurons)
    print_text(str(path))


def compare(out: list[Path], component: str | None = None) -> None:
    """Compares two runs over the same facts, such as two number formats, checkpoints or rules.

    Prints, over all layers and for each: Pearson's correlation of the scores, the ratio of their norms and the
    largest error, relative to the largest score of its contrast in the first run; and the answers that changed.

    Args:
        out: Output folders of the two runs; the first is the reference.
        component: Component whose scores are compared. Default: the first that the first run has.
    """
    from lit_attr.evaluation.run_comparison import compare_runs, comparison_lines

    if len(out) != 2:
        raise UserError(f"give the output folders of two runs, not of {len(out)}")
    first, second = out
    for line in comparison_lines(compare_runs(first, second, component=component)):
        print_text(line)


class Command(NamedTuple):
    """A command.

    Attributes:
        function: What it does; its signature and docstring give the settings.
        positionals: The arguments without a flag, with their help.
    """

    function: Callable[..., None]
    positionals: Mapping[str, str]


RUN, RUNS = {"out": "output folder of a run"}, {"out": "output folder of a run, or of several"}
FLAGS, VALUES = (bool, bool | None), ("true", "false", "null")
COMMANDS: Mapping[str, Command] = {
    "facts": Command(facts, RUN),
    "show": Command(show, {**RUN, "id": "id of the fact"}),
    "plot": Command(plot, RUNS),
    "export": Command(export, RUN),
    "compare": Command(compare, RUNS),
}


def run(words: Sequence[str]) -> None:
    """Runs a command on records, or prints the help of the program.

    Args:
        words: Words after `lit-attr`.

    Raises:
        SystemExit: 1 for a mistake in a file or a folder, 2 for one in the settings' form; with one line on
            standard error.
    """
    parser = OneLineArgumentParser(prog="lit-attr", description=PROGRAM)
    subcommands = parser.add_subcommands(dest="command")
    # Only for the help: LightningCLI parses the words of `predict`.
    subcommands.add_subcommand("predict", OneLineArgumentParser(), help=PREDICT_HELP)
    for name, command in COMMANDS.items():
        summary = (command.function.__doc__ or "").partition("\n")[0]
        # The settings of the others take time and are not parsed.
        subparser = _parser_of(command) if words[:1] == [name] else OneLineArgumentParser()
        subcommands.add_subcommand(name, subparser, help=summary)
    try:
        settings = parser.parse_args(_with_values(words))
    except RecursionError:
        parser.error(TOO_DEEP)
    name = settings.command
    try:
        COMMANDS[name].function(**parser.instantiate(settings)[name].as_dict())
        sys.stdout.flush()
    except ArgumentError as error:
        is_flag = error.argument not in COMMANDS[name].positionals
        _fail(name, f"{'--' if is_flag else ''}{error}")
    except BrokenPipeError:
        # Whoever reads the list, such as `head`, has enough. Python must not try to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _fail(name, f"{where}; fix this or give another folder")
    except UserError as error:
        _fail(name, str(error))


def _parser_of(command: Command) -> OneLineArgumentParser:
    summary, _, details = (command.function.__doc__ or "").partition("\n")
    parser = OneLineArgumentParser(description=f"{summary} {details.partition('Args:')[0]}")
    types = get_type_hints(command.function)
    for name, words in command.positionals.items():
        is_list = types[name] == list[Path]
        kind = Path if is_list else types[name]
        parser.add_argument(name, nargs="+" if is_list else None, type=kind, help=words)
    parser.add_function_arguments(command.function, as_positional=False, skip={*command.positionals})
    for action in parser._actions:
        if types.get(action.dest) in FLAGS:
            # For the help; `_with_values` gives a flag alone its value.
            action.nargs = "?"
    return parser


def _with_values(words: Sequence[str]) -> list[str]:
    """The words, with the value true for each flag that has none: the word after it may be a folder."""
    command = COMMANDS.get(words[0]) if words else None
    types = get_type_hints(command.function) if command is not None else {}
    flags = {f"--{name}" for name, kind in types.items() if kind in FLAGS}
    return [
        f"{word}=true" if word in flags and following.lower() not in VALUES else word
        for word, following in zip(words, [*words[1:], ""][: len(words)], strict=True)
    ]


def _fail(command: str, message: str) -> NoReturn:
    print_error(f"lit-attr {command}: error: {message}")
    sys.exit(1)
