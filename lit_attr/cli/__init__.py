"""The program `lit-attr`: prediction runs, and commands that only read their records."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: Words after `lit-attr`; those of the process where None.

    Raises:
        SystemExit: 1 for a mistake in a file, a model or a row, 2 for one in the settings' form, and 143 or 130
            where SIGTERM or SIGINT stopped a prediction run; with one line on standard error.
    """
    words = sys.argv[1:] if args is None else [*args]
    if words == ["--version"]:
        print(f"lit-attr {own_version()}")
    elif words and (words[0] == "predict" or (words[0].startswith("-") and words[0] not in ("-h", "--help"))):
        # A setting before `predict` is LightningCLI's to refuse.
        from lit_attr.cli.names import check_names

        check_names(words[1:])
        _hide_bars()
        # Imported here: torch and Lightning take seconds, and the other commands need neither.
        from lit_attr.cli.prediction import predict

        # Lightning starts further processes with the words of this one, and has to see that they are its own.
        predict(None if args is None else words)
    else:
        from lit_attr.cli.record_commands import run

        run(words)


def own_version() -> str:
    """The version of the package."""
    # Imported here: it takes as long as the rest of the program.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lit-attr")
    except PackageNotFoundError:
        return "(not installed)"


def _hide_bars() -> None:
    """Hides the progress bars of libraries about weights and tensors, here and in processes that start from here.

    Has to be called before tqdm is imported. The hub's downloads keep their bars. Who has set the verbosity of
    transformers, or tqdm's own variable, gets what these say.
    """
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        os.environ.setdefault("TQDM_DISABLE", "1")
