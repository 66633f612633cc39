"""The wheel: built, inspected, installed elsewhere, and run; and what its metadata declares."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from project import REPOSITORY

import lit_attr

ASSETS = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
PACKAGE = {
    "py.typed",
    "assets/sample_facts.jsonl",
    "assets/attributions.schema.json",
    "assets/exact.schema.json",
} | {f"assets/demo_model/{name}" for name in ASSETS}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(REPOSITORY)], check=True, capture_output=True
    )
    (wheel,) = folder.glob("lit_attr-*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def requirements(metadata: Message) -> dict[str, Requirement]:
    """The requirements of the package and its extras, by name."""
    found = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    return {requirement.name: requirement for requirement in found if requirement.name != "lit-attr"}


def pins(name: str) -> dict[str, list[Requirement]]:
    lines = [line for line in (REPOSITORY / name).read_text().splitlines() if not line.startswith("#")]
    found: dict[str, list[Requirement]] = {}
    for pin in map(Requirement, lines):
        found.setdefault(pin.name, []).append(pin)
    return found


def version(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def test_the_wheel_holds_the_assets_and_the_type_marker(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"lit_attr/{name}" for name in PACKAGE} <= set(names)
    assert not [name for name in names if not name.startswith(("lit_attr/", "lit_attr-"))]


def test_the_source_distribution_holds_what_the_tests_need(wheel: Path):
    (source,) = wheel.parent.glob("lit_attr-*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"lit_attr/{name}" for name in PACKAGE} <= names
    assert {"LICENSE", "constraints.txt", "scripts/test.sh", "tests/test_package.py"} <= names


def test_every_public_name_exists_and_is_documented():
    for name in lit_attr.__all__:
        words = getattr(lit_attr, name).__doc__ or ""
        assert words.strip() and not words.startswith(f"{name}("), name


def test_the_minimum_constraints_are_the_lower_bounds(requirements: dict[str, Requirement]):
    minimum = pins("constraints-minimum.txt")
    bounds = {}
    for name, requirement in requirements.items():
        (bound,) = [specifier for specifier in requirement.specifier if specifier.operator in (">=", "==")]
        bounds[name] = Version(bound.version)
    assert {name: version(minimum[name][0]) for name in bounds} == bounds


def test_the_constraints_are_within_the_bounds(requirements: dict[str, Requirement]):
    pinned = pins("constraints.txt")
    for name, requirement in requirements.items():
        for pin in pinned[name]:
            assert requirement.specifier.contains(version(pin)), pin


def test_every_extra_that_the_docs_name_exists(metadata: Message):
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras == {"adapters", "gguf", "peers", "test"}
    texts = [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("scripts/*"),
        *REPOSITORY.glob("lit_attr/**/*.py"),
    ]
    words = " ".join(path.read_text() for path in texts if path.is_file())
    named = re.findall(r"install\s+'(?:lit-attr|\.)\[([a-z,]+)\]'", words)
    assert named
    assert {extra for names in named for extra in names.split(",")} <= extras


def test_the_declared_pythons_are_the_same_everywhere(metadata: Message):
    python = "Programming Language :: Python :: 3."
    declared = [line for line in metadata.get_all("Classifier", []) if line.startswith(python)]
    minors = [int(line.removeprefix(python)) for line in declared]
    allowed = SpecifierSet(metadata["Requires-Python"])
    assert minors == [minor for minor in range(100) if allowed.contains(f"3.{minor}")]
    span = f"Python 3.{minors[0]} to 3.{minors[-1]}"
    assert span in (REPOSITORY / "README.md").read_text()
    assert f"last={minors[-1]}\n" in (REPOSITORY / "scripts" / "environment.sh").read_text()


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel installed; its dependencies are those of the tests."""
    environment = tmp_path_factory.mktemp("installed") / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (ours,) = [path for path in sys.path if Path(path, "torch").is_dir()]
    (site / "dependencies.pth").write_text(ours)
    return python


def test_the_installed_wheel_runs_from_any_folder(python: Path, tmp_path: Path):
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    # The package must come from the environment.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = str(python.parent / "lit-attr")
    shipped = "contrasts: 474 (0 from an earlier run), rows refused: 0"
    commands = [
        ([python, "-c", "import lit_attr; print(lit_attr.__file__)"], str(python.parent.parent)),
        ([program, "--version"], f"lit-attr {installed_version('lit-attr')}\n"),
        ([program, "predict", "--writer.output_dir", out], shipped),
        ([program, "export", out, "--to", "csv"], f"{out}/attributions.csv\n"),
        ([program, "plot", out, "--facts", "1", "--relations", "0"], f"{out}/plots/facts.pdf\n"),
        ([program, "facts", out, "--search", "Spain"], "The capital of Spain is"),
        ([program, "show", out, "0"], "layer"),
    ]
    for words, printed in commands:
        done = subprocess.run(
            words, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert printed in done.stdout, done.stderr
    assert not [*elsewhere.iterdir()]


# Each `ignore` marks a mistake: strict mypy reports those that are not needed.
PROGRAM = """
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr import (
    Attribution,
    AttributionBatch,
    AttributionModule,
    AttributionMonitor,
    Attributions,
    AttributionWriter,
    Contrast,
    ContrastBatch,
    ContrastCollator,
    CounterfactDataModule,
    LoadingOptions,
    RuleOptions,
    UserError,
    attribute,
    attribute_batch,
    build_contrasts,
    collate_contrasts,
    load_attributions,
)
from lit_attr.facts.rows import read_facts
from lit_attr.models.location import locate


class Theirs(pl.LightningModule):
    def __init__(self, net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.net, self.tokenizer = net, tokenizer

    def predict_step(self, batch: ContrastBatch, batch_idx: int) -> AttributionBatch:
        contrasts: tuple[Contrast, ...] = batch.contrasts
        return attribute_batch(self.net, locate(self.net), collate_contrasts(contrasts))


def run(theirs: Theirs, rows: list[dict[str, Any]], dataset: Dataset[dict[str, Any]], out: Path) -> list[float]:
    module = AttributionModule.from_lightning(theirs, "net", layers=[0, -1])
    AttributionModule("demo", rule_options=RuleOptions(frozen_attention=True), loading=LoadingOptions("main"))
    collator = ContrastCollator(theirs.tokenizer, columns={"target_true": "answer"}, template="Q: {prompt}")
    trainer = pl.Trainer(callbacks=[AttributionWriter(str(out)), AttributionMonitor(rows)])
    trainer.predict(module, DataLoader(dataset, collate_fn=collator), ckpt_path="last.ckpt")
    trainer.predict(theirs, datamodule=CounterfactDataModule(rows, limit=3))
    scores: Tensor = module.predict_step(collator(rows), 0).scores_sum_BLT
    try:
        records: Attributions = attribute(theirs, facts=rows, layers="all", rule="exact")
    except UserError as error:
        raise SystemExit(str(error)) from error
    first: Attribution = records[0]
    few: Attributions = records[:3]
    contrasts, refused = build_contrasts(read_facts(rows).facts, theirs.tokenizer)
    numbers = [float(record["logit_diff"]) for record in load_attributions(out)]
    return [*numbers, float(scores.sum()), float(first["logit_diff"]), len(few), len(contrasts), refused[0].row]


attribute(rule="none")  # type: ignore[arg-type]
attribute(7)  # type: ignore[arg-type]
AttributionModule(layers=0.5)  # type: ignore[arg-type]
ContrastCollator()  # type: ignore[call-arg]
CounterfactDataModule(limit="many")  # type: ignore[arg-type]
len(load_attributions("out"))  # type: ignore[arg-type]
"""


@pytest.mark.slow
def test_a_program_of_other_people_passes_strict_mypy(python: Path, tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr
