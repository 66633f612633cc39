"""Weights from checkpoints of other Lightning modules."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from project import writing_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from lit_attr import errors
from lit_attr.cli import main
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.weights.checkpoints import load_weights, read_checkpoint
from lit_attr.module import AttributionModule

LIMIT = 20


def tiny(**config: Any) -> GPT2LMHeadModel:
    small = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 2048}
    return GPT2LMHeadModel(GPT2Config(**{**small, "initializer_range": 0.3, **config}))


class StrangersModule(pl.LightningModule):
    """A language model two attributes deep beside another net. Two of its settings have names of ours."""

    def __init__(self, layers: int = 77, component: Any = "decoder") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.ModuleDict({"decoder": tiny()})
        self.critic = nn.Linear(3, 3)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net["decoder"](input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@pytest.fixture(scope="module")
def base(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model before training."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StrangersModule, str]:
    """A module after an epoch, and the checkpoint that Lightning wrote."""
    module = StrangersModule()
    module.net["decoder"] = GPT2LMHeadModel.from_pretrained(base)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path_factory.mktemp("fit"), **quiet)
    trainer.fit(module, DataLoader(torch.randint(2000, (16, 8)), batch_size=4))
    return module, trainer.checkpoint_callback.best_model_path


@pytest.fixture(autouse=True)
def new_process(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every test in an empty folder, with the warnings of a new process."""
    monkeypatch.setattr(errors, "_logged", set())


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [record.getMessage() for record in caplog.records if record.name == "lit_attr"]


def predict(*words: object) -> None:
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    main(["predict", *quiet, "--data.limit", str(LIMIT), *map(str, words)])


def records(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The examples, and the model's entry in the manifest."""
    examples = [
        each for path in folder.glob("batches/*.json") for each in json.loads(path.read_text())["examples"]
    ]
    assert len(examples) == LIMIT
    return examples, json.loads((folder / "manifest.json").read_text())["model"]


def test_the_command_line_scores_the_trained_model(
    base: Path, trained: tuple[StrangersModule, str], warned: Callable[[], list[str]]
):
    module, checkpoint = trained
    predict("--model.model_name", base, "--ckpt_path", checkpoint, "--writer.output_dir", "loaded")
    assert warned() == ["checkpoint: left out: 2 tensors of other parts, those of critic"]
    ours = AttributionModule(model=module.net["decoder"], tokenizer=str(base))
    writing_trainer(Path("memory")).predict(ours, datamodule=CounterfactDataModule(limit=LIMIT))
    (found, manifest), (expected, identity) = records(Path("loaded")), records(Path("memory"))
    assert found == expected
    assert manifest["weights"] == identity["weights"]
    assert manifest["layers"] == [0, 1]
    predict("--model.model_name", base, "--writer.output_dir", "untrained")
    untrained, other = records(Path("untrained"))
    assert untrained != found
    assert other["weights"] != manifest["weights"]
    # The saved settings repeat the run.
    predict("--config", "loaded/config.yaml", "--writer.output_dir", "again")
    assert records(Path("again")) == (found, manifest)


def test_a_run_with_other_weights_does_not_resume_a_folder(
    base: Path, trained: tuple[StrangersModule, str], capfd: pytest.CaptureFixture[str]
):
    predict("--model.model_name", base, "--writer.output_dir", "out")
    with pytest.raises(SystemExit) as stopped:
        predict("--model.model_name", base, "--ckpt_path", trained[1], "--writer.output_dir", "out")
    assert stopped.value.code == 1
    assert "writer.output_dir: out was written with model.weights" in capfd.readouterr().err


@pytest.mark.parametrize("rule", ["gradient", "norm-secant"])
def test_a_trainer_in_python_loads_the_checkpoint(
    base: Path, trained: tuple[StrangersModule, str], sample_contrasts: list[Contrast], rule: str, tmp_path: Path
):
    module, checkpoint = trained
    # The rule norm-secant keeps a copy of the final norm's weights.
    changed = torch.load(checkpoint)
    changed["state_dict"]["net.decoder.transformer.ln_f.weight"] *= 3
    torch.save(changed, tmp_path / "changed.ckpt")
    memory = tiny()
    memory.load_state_dict(module.net["decoder"].state_dict())
    memory.transformer.ln_f.weight.data *= 3
    loader = DataLoader(sample_contrasts[:4], batch_size=4, collate_fn=collate_contrasts)
    ours = AttributionModule(str(base), rule=rule)
    (found,) = writing_trainer(tmp_path / "a").predict(ours, loader, ckpt_path=tmp_path / "changed.ckpt")
    (expected,) = writing_trainer(tmp_path / "b").predict(AttributionModule(model=memory, rule=rule), loader)
    assert torch.equal(found.scores_sum_BLT, expected.scores_sum_BLT)
    weights = [json.loads((tmp_path / name / "manifest.json").read_text())["model"]["weights"] for name in "ab"]
    assert weights[0] == weights[1] != AttributionModule(str(base)).identity()["weights"]


def refusal(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of an error message. The run writes no file."""
    with pytest.raises(SystemExit) as stopped:
        predict(*words)
    error = capfd.readouterr().err
    assert stopped.value.code == 1
    assert "Traceback" not in error
    (line,) = (line for line in error.splitlines() if "lit-attr: error: " in line)
    assert list(Path.cwd().iterdir()) == []
    return line.removeprefix("lit-attr: error: ")


def test_a_checkpoint_of_another_model_is_reported_in_one_line(
    trained: tuple[StrangersModule, str], capfd: pytest.CaptureFixture[str]
):
    message = refusal(capfd, "--ckpt_path", trained[1])
    assert "the weights under net.decoder are not those of" in message
    assert "72 are missing, transformer.h.2.ln_1.weight, transformer.h.2.ln_1.bias" in message
    assert message.endswith("and 69 more; give the model that was trained")


def test_files_that_are_not_checkpoints_are_reported_in_one_line(
    base: Path, trained: tuple[StrangersModule, str], capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    whole = Path(trained[1]).read_bytes()
    (tmp_path / "short.ckpt").write_bytes(whole[: len(whole) // 2])
    # A zip file's directory is at its end; here it points to zeros.
    (tmp_path / "hole.ckpt").write_bytes(whole[:60] + bytes(2000) + whole[2060:])
    torch.save(tiny().state_dict(), tmp_path / "bare.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for path, message in (
        (tmp_path / "none.ckpt", "there is no such file; check the path"),
        (tmp_path, "it is a folder, as of a sharded checkpoint; convert it to one file"),
        (
            Path(__file__),
            "it is truncated, or not a checkpoint; give a file that Lightning's ModelCheckpoint wrote",
        ),
        (tmp_path / "short.ckpt", "it is truncated, or not a checkpoint; give"),
        (tmp_path / "hole.ckpt", r"it cannot be read \(.*\); give a file that Lightning's ModelCheckpoint wrote"),
        (tmp_path / "bare.ckpt", "it contains no state_dict; give a file that Lightning's"),
        (tmp_path / "list.ckpt", "it contains no state_dict; give a file that Lightning's"),
    ):
        error = refusal(capfd, "--model.model_name", base, "--ckpt_path", path)
        assert re.match(f"{re.escape(str(path))}: {message}", error)


def test_objects_in_a_checkpoint_are_read_on_request_only(
    base: Path, trained: tuple[StrangersModule, str], capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    checkpoint = torch.load(trained[1])
    checkpoint["hyper_parameters"]["component"] = nn.Linear(1, 1)
    torch.save(checkpoint, tmp_path / "objects.ckpt")
    words = ["--model.model_name", base, "--ckpt_path", tmp_path / "objects.ckpt"]
    message = refusal(capfd, *words)
    assert "objects.ckpt: it holds more than weights, such as torch.nn.modules.linear.Linear; if you" in message
    predict(*words, "--weights_only", "false")
    assert len(records(Path("lit_attr_output"))[0]) == LIMIT


@pytest.mark.parametrize("words", [["--model.quantization", "8bit"], ["--model.device_map", '{"": "disk"}']])
def test_a_placed_model_rejects_a_checkpoint(
    base: Path, trained: tuple[StrangersModule, str], capfd: pytest.CaptureFixture[str], words: list[str]
):
    message = refusal(capfd, "--model.model_name", base, "--ckpt_path", trained[1], *words)
    assert "ckpt_path: its weights cannot be loaded into a model that is quantised or has a device_map" in message


def saved(**parts: nn.Module) -> dict[str, Tensor]:
    return dict(nn.ModuleDict(parts).state_dict())


def assert_loaded(state: dict[str, Tensor], source: nn.Module) -> None:
    model = tiny()
    load_weights(model, state, "tiny")
    for weight, expected in zip(model.parameters(), source.parameters(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("prefix", ["", "model.", "net.decoder.", "model._orig_mod."])
def test_finds_the_prefix(prefix: str):
    source = tiny()
    assert_loaded({f"{prefix}{name}": weight for name, weight in source.state_dict().items()}, source)


def test_one_of_several_tied_weights_is_enough():
    source = tiny()
    for left_out in ("lm_head.weight", "transformer.wte.weight"):
        assert_loaded({name: each for name, each in source.state_dict().items() if name != left_out}, source)


def test_accepts_one_model_under_two_names(warned: Callable[[], list[str]]):
    source = tiny()
    assert_loaded(saved(a=source, z=nn.Linear(2, 2), compiled=source), source)
    assert warned() == ["checkpoint: left out: 2 tensors of other parts, those of z"]


def test_leaves_other_parts_out_and_names_them(warned: Callable[[], list[str]]):
    source, teacher = tiny(), tiny(n_layer=3)
    rest = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("f", "g", "h")})
    state = saved(net=nn.ModuleDict({"student": source, "teacher": teacher}), **rest)
    # Older versions of transformers saved these with a GPT-2.
    state["net.student.transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    state["net.student.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    state["net.student.value.weight"] = torch.ones(2)
    assert_loaded(state, source)
    count = len(teacher.state_dict()) + 4
    assert warned() == [f"checkpoint: left out: {count} tensors of other parts, those of f, g, h and 2 more"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            saved(student=tiny(), teacher=tiny()),
            "2 models in it fit tiny, under student, under teacher; in Python, AttributionModule.from_lightning",
        ),
        (
            saved(f=nn.Linear(2, 2)),
            "none of its weights belongs to tiny, a GPT2LMHeadModel; it has f.weight, f.bias; give",
        ),
        ({}, "none of its weights belongs to tiny"),
        (
            saved(m=tiny(n_layer=1)),
            "under m are not those of tiny: 12 are missing, transformer.h.1.ln_1.weight",
        ),
        (saved(m=tiny(n_layer=3)), "not those of tiny: there are 12 weights more, transformer.h.2.ln_1.weight"),
        (
            saved(m=tiny(vocab_size=9)),
            "tiny: transformer.wte.weight has the shape 9 × 16, not 2048 × 16; give",
        ),
        (
            saved(m=tiny(tie_word_embeddings=False)),
            "transformer.wte.weight and lm_head.weight are tied in the model; its config needs tie_word",
        ),
        (
            saved(m=get_peft_model(tiny(), LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True))),
            "under m.base_model.model are not those of tiny: an adapter is among them, transformer.h.0.attn.",
        ),
    ],
)
def test_rejects_weights_that_do_not_fit(state: dict[str, Tensor], message: str):
    model = tiny()
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(UserError) as raised:
        load_weights(model, state, "tiny")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_loads_a_regionally_wrapped_model(wrapper: str):
    source = tiny()
    named = {
        re.sub(r"^(transformer\.h\.\d+)\.", rf"\1.{wrapper}.", name): weight
        for name, weight in source.state_dict().items()
    }
    assert sum(wrapper in name for name in named) == 24
    assert_loaded({f"net.decoder.{name}": weight for name, weight in named.items()}, source)


def test_loads_what_regional_compilation_saves():
    source = tiny()
    compiled = copy.deepcopy(source)
    for name, block in compiled.transformer.h.named_children():
        block.mlp = torch.compile(block.mlp, backend="eager")
        setattr(compiled.transformer.h, name, torch.compile(block, backend="eager"))
    state = saved(net=compiled)
    assert "net.transformer.h.0._orig_mod.mlp._orig_mod.c_fc.weight" in state
    assert_loaded(state, source)


def test_loads_into_a_regionally_compiled_model():
    source, model = tiny(), tiny()
    for name, block in model.transformer.h.named_children():
        setattr(model.transformer.h, name, torch.compile(block, backend="eager"))
    load_weights(model, saved(net=source), "tiny")
    assert type(model.transformer.h[0]).__name__ == "OptimizedModule"
    for weight, expected in zip(model.parameters(), source.parameters(), strict=True):
        assert torch.equal(weight, expected)


def malformed(kind: str) -> dict[Any, Tensor]:
    state: dict[Any, Tensor] = saved(m=tiny())
    name = "m.transformer.h.1.mlp.c_fc.weight"
    match kind:
        case "number":
            state[3] = torch.ones(2)
        case "tuple":
            state["m", "x" * 500] = torch.ones(2)
        case "sparse":
            state[name] = state[name].to_sparse()
        case "compressed":
            state[name] = state[name].to_sparse_csr()
        case "meta":
            state[name] = state[name].to("meta")
        case "quantised":
            state[name] = torch.quantize_per_tensor(state[name], 0.1, 0, torch.qint8)
        case "nan":
            state[name][3, 3] = torch.nan
        case "infinite":
            state[name][3, 3] = torch.inf
        case "twice":
            state[name.replace("h.1.", "h.1._orig_mod.")] = state[name] + 1
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("number", "'3' in its state_dict is not a name; give a file that Lightning's"),
        ("tuple", r"\('m', 'xxx.* in its state_dict is not a name; give"),
        ("sparse", "h.1.mlp.c_fc.weight is sparse .*; save a plain tensor"),
        ("compressed", "h.1.mlp.c_fc.weight is sparse .*; save a plain tensor"),
        ("meta", "h.1.mlp.c_fc.weight is on the device meta, where tensors have no numbers; save"),
        ("quantised", r"h.1.mlp.c_fc.weight is quantised \(Tensor, torch.qint8\); save"),
        ("nan", "h.1.mlp.c_fc.weight is not finite, so that every score would be; save"),
        ("infinite", "h.1.mlp.c_fc.weight is not finite"),
        (
            "twice",
            "it has two weights m.transformer.h.1.mlp.c_fc.weight, one of them as m.transformer.h.1._orig_mod",
        ),
    ],
)
def test_malformed_weights_are_refused_in_one_line(kind: str, message: str, tmp_path: Path):
    """As they are, and as read from a file."""
    model = tiny()
    before = [weight.clone() for weight in model.parameters()]
    state = malformed(kind)
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    for given in (state, read_checkpoint(tmp_path / "a.ckpt")["state_dict"]):
        with pytest.raises(UserError, match=rf"^checkpoint: .*{message}") as raised:
            load_weights(model, given, "tiny")
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
