"""The help of `lit-attr predict`."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

from lit_attr.attribution.catalogue import AblationOptions, RuleOptions
from lit_attr.callbacks.writer import AttributionWriter
from lit_attr.cli import main
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.module import AttributionModule
from lit_attr.settings import LoadingOptions

GROUPS = {
    "model": AttributionModule,
    "data": CounterfactDataModule,
    "writer": AttributionWriter,
    "model.rule_options": RuleOptions,
    "model.ablation_options": AblationOptions,
    "model.loading": LoadingOptions,
}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs `lit-attr predict` in a terminal of 100 columns, and returns what it prints."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["predict", *words])
        assert ended.value.code == 0
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().out

    return run


def own_settings() -> set[str]:
    """The settings of our signatures, but those that are groups and those that only Python can pass."""
    names = {f"{group}.{name}" for group, owner in GROUPS.items() for name in inspect.signature(owner).parameters}
    return names - GROUPS.keys() - {"model.model", "model.tokenizer"}


def descriptions(text: str) -> dict[str, list[str]]:
    """The lines of each setting, without its name."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"  (?:-\w, )?--(\S+)( .*)?$", line):
            found[name := match[1]] = [match[2].strip()] if match[2] else []
        elif line.startswith("      "):
            found[name].append(line.strip())
    return found


def test_it_has_our_settings_in_groups_and_none_of_the_trainers(printed):
    text = printed("--help")
    assert own_settings() <= descriptions(text).keys()
    assert not any(name.startswith("trainer") for name in descriptions(text))
    titles = re.findall(r"^(\w.*):$", text, flags=re.MULTILINE)
    assert [title.partition(":")[0].split()[0] for title in titles] == [
        "Model",
        "Data",
        "Writer",
        "Run",
        *["Less"] * 3,
    ]
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 170
    assert text.splitlines()[-1].endswith("--trainer.help.")


def test_each_setting_has_a_line_or_two_with_its_default(printed):
    for name, lines in descriptions(printed("--help")).items():
        assert 1 <= len(lines) <= 2, name
        if name in own_settings():
            assert lines[-1].endswith("]"), name


def test_defaults_are_those_of_the_signatures(printed):
    found = descriptions(printed("--help"))
    for name, default in (
        *[("model.verify", "16"), ("model.sample_seed", "0"), ("data.strict", "false"), ("data.limit", "null")],
        *[
            ("model.loading.self_test", "true"),
            ("writer.output_dir", "lit_attr_output"),
            ("data.source", "sample"),
        ],
        # In words, where the description has them.
        *[("model.model_name", "the demo model of this package"), ("data.tokenizer", "the module's")],
    ):
        assert " ".join(found[name]).endswith(f"[{default}]")


@pytest.mark.parametrize("group", ["model", "data", "writer", "trainer"])
def test_a_group_in_full(group: str, printed):
    text = printed(f"--{group}.help")
    names = {name for name in own_settings() if name.startswith(f"{group}.")}
    assert all(f"--{name} " in text for name in names)
    assert set(re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)) == {group}
    assert "\\x" not in text
    if group == "model":
        # What the short help leaves out: all sentences, and the types.
        assert "One costs as much as the scores of a few dozen" in " ".join(text.split())
        assert "(type: int, default: 16)" in " ".join(text.split())
    if group == "trainer":
        assert {"--trainer.devices", "--trainer.strategy", "--trainer.callbacks"} <= set(text.split())


@pytest.mark.parametrize("flag", ["--trainr.help", "--help.trainer", "--model.loading.help"])
def test_a_wrong_help_is_a_mistake_in_one_line(flag: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["predict", flag])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == (
        f"lit-attr: error: unrecognized arguments: {flag}; see lit-attr predict --help"
    )
