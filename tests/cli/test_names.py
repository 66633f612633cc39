"""The first look at the settings' names, against the parser that decides."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lit_attr.cli import main, names
from lit_attr.cli.names import check_names, is_unknown, names_of
from lit_attr.cli.prediction import AttributionCLI

GROUPS = ("model", "data", "writer", "trainer")
NO_TORCH = "import sys; assert not {'torch', 'transformers', 'lightning', 'datasets'} & {*sys.modules}"


class FoundError(Exception):
    """Ends the program once the parser is made."""


@pytest.fixture(scope="module")
def parser() -> LightningArgumentParser:
    """The parser of `lit-attr predict`."""
    found: list[LightningArgumentParser] = []

    def keep(cli: AttributionCLI, parser: LightningArgumentParser, args: Any) -> None:
        found.append(parser)
        raise FoundError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttributionCLI, "parse_arguments", keep)
        with pytest.raises(FoundError):
            main(["predict"])
    return found[0]._subcommands_action.choices["predict"]


@pytest.fixture(scope="module")
def flags(parser: LightningArgumentParser) -> list[str]:
    """Every flag of the parser."""
    return [flag for flag in parser._option_string_actions if flag.startswith("--")]


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")


def test_every_setting_that_the_parser_takes_passes(flags: list[str], tmp_path: Path):
    assert len(flags) > 90
    for flag in flags:
        check_names([flag])
        check_names([f"{flag}=1"])
        check_names([f"{flag}+", "1"])


def test_every_key_of_a_config_passes(parser: LightningArgumentParser, tmp_path: Path):
    settings = yaml.safe_load(parser.dump(parser.get_defaults(), skip_unset=False, skip_validation=True))
    assert {*GROUPS} <= {*settings}
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump(settings))
    check_names(["--config", str(path)])
    assert not [name for name in flat(settings) if is_unknown(name)]


def test_the_names_are_those_of_the_parser(flags: list[str]):
    for group in GROUPS:
        found = names_of(group)
        assert found is not None
        taken = {flag.split(".")[1].rstrip("+") for flag in flags if flag.startswith(f"--{group}.")} - {"help"}
        # What only Python can pass is left to the parser, which refuses it.
        assert {*found} - taken == ({"model", "tokenizer"} if group == "model" else set())
        for name, nested in found.items():
            if nested is not None:
                inner = {flag.split(".")[2].rstrip("+") for flag in flags if flag.startswith(f"--{group}.{name}.")}
                assert nested == inner - {"help"}
    nested = {name for name, inner in (names_of("model") or {}).items() if inner}
    assert nested == {"loading", "rule_options", "ablation_options"}


@pytest.mark.parametrize(
    "words",
    [
        ["--data.columns.target_true", "answer"],
        ["--model.device_map.transformer", "cpu"],
        ["--model.layers+=3"],
        ["--model.loading.class_path", "x"],
        ["--trainer.logger.init_args.save_dir", "x"],
        ["--trainer.callbacks.help", "x"],
        ["--data.template", "--model.layrs {prompt}"],
        ["--help.trainer"],
        ["--", "--model.layrs"],
        ["-c", "none.yaml", "--config"],
        ["--config", "none.yaml"],
        # Names of earlier versions, which the parser knows.
        ["--writer.verify", "3"],
        ["--model.self_test", "false"],
    ],
)
def test_what_is_not_certain_is_left_to_the_parser(words: list[str]):
    check_names(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.layrs", "3"], "unrecognized arguments: --model.layrs 3; there is model.layers; "),
        (["--data.limt=3"], "unrecognized arguments: --data.limt=3; there is data.limit; "),
        (["--model.loading.revisn", "x"], "unrecognized arguments: --model.loading.revisn x; there is model.load"),
        (
            ["--trainer.acelerator", "--model.dtype"],
            "unrecognized arguments: --trainer.acelerator; there is train",
        ),
        (["--writer.zzz"], "unrecognized arguments: --writer.zzz; see lit-attr predict --help"),
    ],
)
def test_an_unknown_name_is_reported_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        check_names(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lit-attr: error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
@pytest.mark.parametrize(
    ("content", "key"),
    [("model:\n  layrs: 3\n", "model.layrs"), ("{model: {loading: {x: 1}}}", "model.loading.x")],
)
def test_an_unknown_key_in_a_file(
    form: str, content: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit):
        check_names(form.format(path).split())
    assert f"does not accept option '{key}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["model: [", "[" * 3_000, "3", "model: 3", "{model: {1: 2}}", "\x00", "a: !!x 1"]
)
def test_a_file_that_is_none_of_ours_is_left_to_the_parser(content: str, tmp_path: Path):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    check_names(["--config", str(path)])


def test_without_sources_nothing_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    names_of.cache_clear()
    check_names(["--trainer.acelerator", "cpu"])
    names_of.cache_clear()


def test_an_unknown_name_is_reported_without_torch():
    program = (
        "from lit_attr.cli import main\n"
        "try:\n    main(['predict', '--model.layrs', '3'])\n"
        f"except SystemExit as stop:\n    assert stop.code == 2\n{NO_TORCH}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("lit-attr: error: unrecognized arguments: --model.layrs 3")
