"""The example project with the monitor and without it."""

from __future__ import annotations

import difflib
import filecmp
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from project import REPOSITORY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXAMPLES = REPOSITORY / "scripts" / "examples"
README = (EXAMPLES / "README.md").read_text()
NAMES = ["capitals.csv", "config.yaml", "train.py"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of logs and checkpoints of both projects, after fifty steps of the README's command."""
    (command,) = re.findall(r"^python (train\.py .*)$", README, flags=re.MULTILINE)
    script, *words = shlex.split(command)
    folders = {}
    for name in ("before", "after"):
        folders[name] = tmp_path_factory.mktemp(name)
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        # An epoch has four steps: one validation, followed by a checkpoint, at step 40.
        short = ["--trainer.max_steps", "50", "--trainer.check_val_every_n_epoch", "10"]
        settings = ["--trainer.default_root_dir", str(folders[name]), *short, *quiet]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(EXAMPLES / name)
            patch.setattr(sys, "argv", [script])
            patch.setattr(sys, "dont_write_bytecode", True)
            spec = importlib.util.spec_from_file_location(f"{name}_{Path(script).stem}", script)
            project = importlib.util.module_from_spec(spec)
            # The command line looks up the types of settings there.
            patch.setitem(sys.modules, project.__name__, project)
            spec.loader.exec_module(project)
            project.main([*words, *settings])
    return folders


def events(folder: Path) -> EventAccumulator:
    (path,) = folder.rglob("events.out.tfevents.*")
    return EventAccumulator(str(path), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_the_monitor_takes_a_few_lines_of_yaml():
    for folder in ("before", "after"):
        assert sorted(path.name for path in (EXAMPLES / folder).iterdir() if path.is_file()) == NAMES
    assert filecmp.cmpfiles(EXAMPLES / "before", EXAMPLES / "after", NAMES, shallow=False)[1] == ["config.yaml"]
    before, after = ((EXAMPLES / name / "config.yaml").read_text().splitlines() for name in ("before", "after"))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert len(changed) < 10
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert changed == [f"+ {line}" for line in shown.splitlines()]


def test_losses_and_weights_are_equal_to_the_bit(runs: dict[str, Path]):
    before, after = (
        [(scalar.step, scalar.value) for scalar in events(runs[name]).Scalars("train_loss")]
        for name in ("before", "after")
    )
    assert len(before) == 50
    assert after == before
    assert before[-1][1] < 0.7 * before[0][1]
    ours, theirs = (torch.load(next(runs[name].rglob("*.ckpt")))["state_dict"] for name in ("before", "after"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pictures_and_numbers_are_in_the_event_file(runs: dict[str, Path]):
    assert not events(runs["before"]).Tags()["images"]
    found = events(runs["after"])
    facts = [f"attribution/facts/{row}" for row in (0, 13, 26, 39)]
    assert sorted(found.Tags()["images"]) == [*facts, "attribution/role_by_layer"]
    for tag in found.Tags()["images"]:
        assert [image.step for image in found.Images(tag)] == [0, 40, 50]
    for name in ("contrasts", "logit_difference", "contrast_accuracy", "known_share", "score/last", "layer/last"):
        assert [scalar.step for scalar in found.Scalars(f"attribution/{name}")] == [0, 40, 50]
    assert found.Scalars("attribution/contrasts")[0].value == 53
    start, _, end = (scalar.value for scalar in found.Scalars("attribution/logit_difference"))
    assert start < end
