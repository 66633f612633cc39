"""What the program imports, and its version."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from lit_attr.cli import main

HEAVY = {"torch", "transformers", "lightning", "pytorch_lightning", "datasets", "pandas", "scipy", "matplotlib"}


def test_the_version(capsys: pytest.CaptureFixture[str]):
    main(["--version"])
    assert capsys.readouterr().out == f"lit-attr {version('lit-attr')}\n"


def test_an_unknown_command_is_refused_without_torch():
    program = (
        "import sys\nfrom lit_attr.cli import main\n"
        "try:\n    main(['fact', 'out'])\nexcept SystemExit as stop:\n    assert stop.code == 2\n"
        f"assert not {HEAVY!r} & {{*sys.modules}}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("lit-attr: error: ") and done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in ("predict", "facts", "show", "plot", "export", "compare"))


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
