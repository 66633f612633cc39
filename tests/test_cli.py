"""The command line, in process and in processes of its own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from project import COUNTERFACT, REPOSITORY, SHARED_DATA
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast, PreTrainedTokenizerBase

from lit_attr.cli import main
from lit_attr.datamodule import CounterfactDataModule

pytestmark = pytest.mark.usefixtures("elsewhere")


def predict(*words: str) -> None:
    main(["predict", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", *words])


def examples(folder: Path) -> list[dict[str, Any]]:
    return [
        example for path in folder.glob("batches/*.json") for example in json.loads(path.read_text())["examples"]
    ]


def refusal(capfd: pytest.CaptureFixture[str], status: int, *words: str) -> str:
    """The one line that a mistake is reported in. No file is left behind."""
    with pytest.raises(SystemExit) as stopped:
        predict(*words)
    error = capfd.readouterr().err
    assert stopped.value.code == status
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if "lit-attr: error: " in line]
    assert len(lines) == 1
    assert error.splitlines()[-1] == lines[0]
    assert list(Path.cwd().iterdir()) == []
    return lines[0].removeprefix("lit-attr: error: ")


# Settings of the previous version, and the ones that took their place.
OLD_FLAGS = {
    "writer.verify": ("3", "model.verify"),
    "model.frozen_attention": ("true", "model.rule_options.frozen_attention"),
    "model.integration_steps": ("4", "model.rule_options.integration_steps"),
    "model.revision": ("main", "model.loading.revision"),
    "model.attn_implementation": ("eager", "model.loading.attn_implementation"),
    "model.llm_int8_threshold": ("0", "model.loading.llm_int8_threshold"),
    "model.offload_folder": ("out", "model.loading.offload_folder"),
    "model.trust_remote_code": ("true", "model.loading.trust_remote_code"),
    "model.use_safetensors": ("false", "model.loading.use_safetensors"),
    "model.self_test": ("false", "model.loading.self_test"),
}


@pytest.mark.parametrize("form", ["flag", "flag=", "file"])
@pytest.mark.parametrize("old", OLD_FLAGS)
def test_an_old_flag_names_the_new_one(old: str, form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    value, new = OLD_FLAGS[old]
    group, _, name = old.partition(".")
    path = tmp_path / "old.yaml"
    path.write_text(f"data:\n  limit: 3\n{group}:\n  {name}: {value}\n")
    forms = {"flag": [f"--{old}", value], "flag=": [f"--{old}={value}"], "file": ["--config", str(path)]}
    assert refusal(capfd, 2, *forms[form]) == f"{old}: its name is {new} now"


def test_predict_alone_runs_the_demo(elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    main(["predict"])
    data = CounterfactDataModule()
    data.setup()
    assert sorted(example["id"] for example in examples(elsewhere / "lit_attr_output")) == list(
        range(len(data.contrasts))
    )
    printed = capsys.readouterr().out
    summary = json.loads(Path("lit_attr_output/summary.json").read_text())
    assert summary["contrast_accuracy"] >= 0.99
    assert f"contrast accuracy (true answer above the false one): {summary['contrast_accuracy']:.1%}" in printed
    assert "--logdir lit_attr_output\n" in printed
    assert list((elsewhere / "lit_attr_output").glob("lightning_logs/version_0/events.out.tfevents.*"))


@pytest.mark.slow
def test_runs_alike_as_a_module_and_as_a_script(elsewhere: Path):
    script = str(Path(sys.executable).parent / "lit-attr")
    for name, command in (("module", [sys.executable, "-m", "lit_attr"]), ("script", [script])):
        words = ["predict", "--data.limit", "5", "--writer.output_dir", name, "--trainer.accelerator", "cpu"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert len(examples(elsewhere / name)) == 5
    assert sorted(map(str, examples(elsewhere / "module"))) == sorted(map(str, examples(elsewhere / "script")))


def test_a_second_run_into_the_same_folder_resumes(elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        predict("--data.limit", "5", "--writer.output_dir", "out", "--trainer.logger", "false")
    assert len(examples(elsewhere / "out")) == 5
    assert "contrasts: 5 (5 from an earlier run)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("3", [3]),
        ("-1", [7]),
        ("all", list(range(8))),
        ("[0,5,-1]", [0, 5, 7]),
        ("4-6", [4, 5, 6]),
        ("0:8:3", [0, 3, 6]),
        ("1:3", [1, 2]),  # which YAML takes for the number 63
        ("[0,6-7]", [0, 6, 7]),
        ("0,-1", [0, 7]),
    ],
)
def test_layers_have_several_forms(elsewhere: Path, layers: str, expected: list[int]):
    predict("--data.limit", "2", "--model.layers", layers, "--trainer.logger", "false")
    (batch,) = (elsewhere / "lit_attr_output" / "batches").iterdir()
    assert json.loads(batch.read_text())["layers"] == expected


def test_a_run_without_batches_succeeds(elsewhere: Path):
    predict("--trainer.limit_predict_batches", "0", "--trainer.logger", "false")


def test_predictions_are_not_kept():
    written = print_config()
    assert written["return_predictions"] is False
    assert written["trainer"]["inference_mode"] is False


def print_config(*words: str) -> dict[str, Any]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        main(["predict", *words, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(printed.getvalue())


def test_configs_compose_and_the_printed_one_is_accepted(elsewhere: Path):
    Path("a.yaml").write_text("model:\n  layers: [0, 1]\n  component: attention\ndata:\n  limit: 3\n")
    Path("b.yaml").write_text("model:\n  layers: [-1]\n")
    printed = print_config("--config", "a.yaml", "--config", "b.yaml", "--data.limit", "4")
    assert printed["model"]["layers"] == [-1]
    assert printed["model"]["component"] == "attention"
    assert printed["data"]["limit"] == 4
    Path("fed.yaml").write_text(yaml.safe_dump(printed))
    assert print_config("--config", "fed.yaml") == printed
    predict("--config", "fed.yaml")
    assert len(examples(elsewhere / "lit_attr_output")) == 4


def test_the_saved_config_repeats_the_run(elsewhere: Path):
    predict(
        "--data.limit", "3", "--model.layers", "[1]", "--writer.output_dir", "out", "--trainer.logger", "false"
    )
    predict("--config", "out/config.yaml", "--writer.output_dir", "again")
    assert sorted(map(str, examples(elsewhere / "out"))) == sorted(map(str, examples(elsewhere / "again")))


def test_the_data_uses_the_tokenizer_of_the_model(elsewhere: Path, model_folder: Path):
    predict("--model.model_name", str(model_folder), "--data.limit", "3")
    assert len(examples(elsewhere / "lit_attr_output")) == 3


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--model.layrs", "3"], 2, "unrecognized arguments: --model.layrs 3"),
        (["--model.layer", "3"], 2, "unrecognized arguments: --model.layer 3"),
        (["--model.model", "x"], 2, "unrecognized arguments: --model.model x"),
        (["--model.dtype", "float3"], 2, "model.dtype: 'float3' is not float32 or bfloat16 or float16 or auto"),
        (["--model.quantization", "3bit"], 2, "model.quantization: '3bit' is not 8bit or 4bit or null"),
        (["--data.batch_size", "x"], 2, "data.batch_size: 'x' is not int"),
        (["--data.limit", "x"], 2, "data.limit: 'x' is not int or null"),
        (["--trainer.strategy", "none"], 1, "trainer: You selected an invalid strategy name"),
        (["--model.layers", "some"], 1, "model.layers: 'some' is neither all, a layer"),
        (["--model.model_name", ""], 1, "model.model_name: it is empty"),
        (["--writer.output_dir", ""], 1, "writer.output_dir: '' is not a folder"),
        (["--data.split", "train"], 1, "data.split: 'train' is for hub data sets; sample is not one"),
        (["--writer.output_dir", __file__], 1, "is not a folder; give another"),
        (["--writer.output_dir", "/proc/none"], 1, "No such file or directory: '/proc/none"),
        (["--config", "none.yaml"], 2, "config: File does not exist"),
        (["--data.batch_size", "0"], 1, "data.batch_size: 0 is less than 1; give 1 or more"),
        (["--model.verify", "-1"], 1, "model.verify: -1 is less than 0; give 0 or more"),
        (["--writer.max_heatmaps", "-1"], 1, "writer.max_heatmaps: -1 is less than 0; give 0 or more"),
        (["--data.answer_separator", "\a"], 1, "data.answer_separator: it cannot stand in a text: "),
        (["--model.window", "9"], 1, "model.window: 9 is not from 2 to 8, the number of layers; give another"),
        (["--model.layers", "[0,99]"], 1, "model.layers: there is no layer 99; this model has 8, 0 to 7"),
        (["--model.component", "mpl"], 1, "model.component: 'mpl' is none of mlp, attention, block"),
        (["--model.model_name", "/none"], 1, "there is no folder /none; check the path"),
        (["--data.tokenizer", "/none"], 1, "data.tokenizer: there is no folder /none; check the path"),
        (["--data.source", "/none.jsonl"], 1, "data.source: there is no file /none.jsonl; check the path"),
        (["--data.where", "P0"], 1, "data.source: there are no rows with relation_id in ['P0']"),
        (["--trainer.accelerator", "gpu"], 1, "trainer: No supported gpu backend found"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    capfd: pytest.CaptureFixture[str], words: list[str], status: int, message: str
):
    assert message in refusal(capfd, status, *words)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("facts.jsonl", "{not json", "line 1: not JSON"),
        ("facts.jsonl", "", "there are no rows"),
        ("facts.json", "[]", "there are no rows"),
        (
            "facts.csv",
            "prompt,subject\na b,b\n",
            "no column target_false, target_true; the columns are prompt, subject",
        ),
        ("facts.parquet", "not parquet at all", "not a complete parquet file"),
    ],
)
def test_a_bad_file_is_reported_in_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: str, message: str
):
    path = tmp_path / name
    path.write_text(content)
    line = refusal(capfd, 1, "--data.source", str(path))
    assert message in line


def test_a_tokenizer_of_another_model_is_reported_in_one_line(
    capfd: pytest.CaptureFixture[str], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_layer=1, n_embd=8, n_head=1))
    model.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    line = refusal(capfd, 1, "--model.model_name", str(tmp_path / "small"))
    assert f"data.tokenizer: it has {len(tokenizer)} tokens, but the model" in line


def test_an_unknown_key_in_a_file_is_reported_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = tmp_path / "bad.yaml"
    path.write_text("model:\n  layrs: 3\n")
    assert "does not accept option 'model.layrs'" in refusal(capfd, 2, "--config", str(path))


@pytest.mark.parametrize("words", [[], ["fit"], ["--config", "flat.yaml", "predict"]])
def test_other_subcommands_are_refused_in_one_line(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    Path("flat.yaml").write_text("data:\n  limit: 3\n")
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith("lit-attr: error: ")
    assert error.count("\n") == 1


@pytest.mark.skipif(not COUNTERFACT.exists(), reason="needs the CounterFact rows beside the repository")
def test_real_rows_and_the_real_tokenizer(elsewhere: Path, tmp_path: Path):
    tokenizer = GPT2TokenizerFast.from_pretrained(SHARED_DATA / "gpt2-tokenizer")
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=64, n_head=4)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    predict("--model.model_name", str(folder), "--data.source", str(COUNTERFACT), "--data.limit", "2000")
    records = examples(elsewhere / "lit_attr_output")
    assert len(records) == len({record["id"] for record in records}) == 2000
    for record in records[::100]:
        assert "".join(record["tokens"]) == record["prompt"]
        start, stop = record["subject_span"]
        assert "".join(record["tokens"][start:stop]).strip().startswith(record["subject"])


CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
MONITOR = REPOSITORY / "configs" / "monitor.yaml"


@pytest.mark.parametrize("path", [path for path in CONFIGS if path != MONITOR], ids=lambda path: path.name)
def test_every_config_is_accepted(path: Path):
    written, printed = yaml.safe_load(path.read_text()), print_config("--config", str(path))
    assert flat(printed).items() >= flat(written).items()


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings by dotted names; values as YAML writes them."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        nested = flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else None
        found |= nested or {f"{prefix}{name}": yaml.safe_dump(value)}
    return found


def test_the_monitors_config_is_accepted_by_a_trainers_parser():
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    (callback,) = parser.parse_path(str(MONITOR)).trainer.callbacks
    (written,) = yaml.safe_load(MONITOR.read_text())["trainer"]["callbacks"]
    assert callback.class_path == written["class_path"]
    assert callback.init_args.as_dict().items() >= written["init_args"].items()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_key_of_a_config_has_a_comment(path: Path):
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith("  ") and not line.lstrip().startswith(("#", "-")):
            assert "  # " in line, f"{path.name}, line {number} has no comment"
