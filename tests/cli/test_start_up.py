"""What the program imports, and its version."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from lit_attr.cli import ON_RECORDS, main
from lit_attr.cli.record_commands import COMMANDS

HEAVY = {"torch", "transformers", "lightning", "pytorch_lightning", "datasets", "pandas", "scipy", "matplotlib"}


def test_the_version(capsys: pytest.CaptureFixture[str]):
    main(["--version"])
    assert capsys.readouterr().out == f"lit-attr {version('lit-attr')}\n"


def test_every_command_on_records_is_run_as_one():
    assert set(ON_RECORDS) == {*COMMANDS}


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["--version"], {"jsonargparse", "numpy", "rich"}),
        (["--help"], {"numpy", "rich"}),
        (["facts", "--help"], {"rich"}),
    ],
)
def test_help_and_version_import_little(words: list[str], more: set[str]):
    program = (
        f"import sys\nfrom lit_attr.cli import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass\n"
        f"found = {HEAVY | more!r} & {{*sys.modules}}\nassert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
