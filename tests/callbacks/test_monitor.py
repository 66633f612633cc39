"""The monitor in trainings of other people's modules."""

from __future__ import annotations

import io
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from trainings import FACTS, SMALL, StrangersModule, csv_logger, fit, loader, make_trainer, read_csv
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from lit_attr.attribution.catalogue import RuleOptions, find_rule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.callbacks.monitor import AttributionMonitor
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.roles import MEAN_ROLES, mean_mask_RT
from lit_attr.facts.rows import read_facts
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.location import locate


def random_state() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in np.random.get_state()]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 4, "val_check_interval": 2},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.1, "inference_mode": False},
    ],
    ids=str,
)
def test_training_is_unchanged_to_the_bit(settings: dict[str, Any]):
    alone = fit(**settings)
    state = random_state()
    watched = fit(AttributionMonitor(FACTS, every_n_steps=1), **settings)
    assert random_state() == state
    assert watched.losses == alone.losses
    assert len(alone.losses) == 12
    for ours, theirs in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Snapshots(pl.Callback):
    """The state of a model before and after the callback between two of these."""

    def __init__(self, taken: list[Any]) -> None:
        self.taken = taken

    def take(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        modules = list(pl_module.modules())
        self.taken.append(
            (
                [None if p.grad is None else p.grad.tolist() for p in pl_module.parameters()],
                [p.requires_grad for p in pl_module.parameters()],
                [module.training for module in modules],
                [[*module._forward_hooks, *module._forward_pre_hooks] for module in modules],
                [sorted(vars(module)) for module in modules],
                torch.is_inference_mode_enabled(),
                torch.is_grad_enabled(),
            )
        )

    on_train_start = on_train_batch_end = on_validation_end = take


def test_leaves_the_state_of_model_and_process_unchanged():
    """Even while gradients are accumulated, which the next step still needs."""
    taken: list[Any] = []
    callbacks = Snapshots(taken), AttributionMonitor(FACTS, every_n_steps=1), Snapshots(taken)
    fit(*callbacks, accumulate_grad_batches=4, val_check_interval=3)
    assert len(taken) > 20
    assert taken[::2] == taken[1::2]
    assert any(gradient is not None for snapshot in taken for gradient in snapshot[0])
    assert any(len(set(snapshot[2])) == 2 for snapshot in taken)


def test_logged_numbers_belong_to_the_weights_at_their_step(tmp_path: Path):
    """Compared with means over facts attributed one by one, before training and after it."""
    first = StrangersModule()
    last = fit(AttributionMonitor(FACTS), logger=csv_logger(tmp_path))
    found = read_csv(tmp_path)
    contrasts, _ = build_contrasts(read_facts(FACTS).facts, first.tokenizer)
    for step, module in ((0, first), (12, last)):
        lm = module.lm.eval()
        scored = [attribute_batch(lm, locate(lm), collate_contrasts([contrast])) for contrast in contrasts]
        differences = [float(each.logit_true_B - each.logit_false_B) for each in scored]
        assert found[step]["contrasts"] == len(FACTS)
        assert found[step]["logit_difference"] == pytest.approx(np.mean(differences), abs=1e-5)
        assert found[step]["contrast_accuracy"] == np.mean([value > 0 for value in differences])
        assert found[step]["known_share"] == np.mean([int(each.rank_true_B) == 0 for each in scored])
        for place, role in enumerate(MEAN_ROLES):
            masks = [mean_mask_RT(each.roles, each.subject_span)[place] for each in contrasts]
            means = [
                each.scores_sum_BLT[0, :, mask].mean(1).tolist()
                for each, mask in zip(scored, masks, strict=True)
                if mask.any()
            ]
            name = role.replace(" ", "_")
            assert (f"score/{name}" in found[step]) == bool(means)
            if means:
                mean_L = np.mean(means, axis=0)
                layer = int(found[step][f"layer/{name}"])
                assert layer == np.abs(mean_L).argmax()
                assert found[step][f"score/{name}"] == pytest.approx(mean_L[layer], abs=1e-5)


@pytest.mark.parametrize(
    ("monitor", "trainer", "steps"),
    [
        ({}, {}, [0, 6, 12]),
        ({"every_n_steps": 4}, {}, [0, 4, 6, 8, 12]),
        ({"every_n_steps": 4, "at_validation_end": False}, {}, [0, 4, 8, 12]),
        ({"every_n_steps": 1}, {"accumulate_grad_batches": 3, "limit_val_batches": 0}, [0, 1, 2, 3, 4]),
        ({"every_n_steps": 5}, {"max_epochs": 1, "num_sanity_val_steps": 0}, [0, 5, 6]),
    ],
)
def test_passes_run_when_they_are_due(monitor: dict, trainer: dict, steps: list[int], tmp_path: Path):
    fit(AttributionMonitor(FACTS[:2], **monitor), logger=csv_logger(tmp_path), **trainer)
    assert sorted(read_csv(tmp_path)) == steps


class TwoOptimizers(StrangersModule):
    """Takes two optimizer steps per batch, as a GAN does."""

    automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.lm(input_ids=batch[0], labels=batch[0]).loss)
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.parameters(), lr=1e-2) for _ in range(2)]


def test_no_pass_is_skipped_when_a_batch_takes_several_steps(tmp_path: Path):
    monitor = AttributionMonitor(FACTS[:2], every_n_steps=3)
    trainer = make_trainer(monitor, logger=csv_logger(tmp_path), max_epochs=1)
    trainer.fit(TwoOptimizers(), loader())
    assert sorted(read_csv(tmp_path)) == [0, 4, 6, 10, 12]


def test_pictures_and_numbers_are_in_the_event_file(tmp_path: Path):
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    fit(AttributionMonitor(FACTS, every_n_steps=6, max_heatmaps=3, layers=[-1]), logger=[logger])
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    tags = sorted(events.Tags()["images"])
    assert tags == [f"attribution/facts/{place}" for place in (0, 4, 8)] + ["attribution/role_by_layer"]
    for tag in tags:
        assert [image.step for image in events.Images(tag)] == [0, 6, 12]
        pixels = [Image.open(io.BytesIO(image.encoded_image_string)) for image in events.Images(tag)]
        assert pixels[0].width >= 480
        assert pixels[0].tobytes() != pixels[-1].tobytes()
    assert [scalar.step for scalar in events.Scalars("attribution/known_share")] == [0, 6, 12]
    assert {scalar.value for scalar in events.Scalars("attribution/layer/last")} == {1}


def test_runs_in_validate_without_training(tmp_path: Path):
    trainer = make_trainer(AttributionMonitor(FACTS), logger=csv_logger(tmp_path))
    trainer.validate(StrangersModule(), loader(8), verbose=False)
    assert {step: numbers["contrasts"] for step, numbers in read_csv(tmp_path).items()} == {0: len(FACTS)}


def test_runs_under_fast_dev_run_and_without_loggers():
    for settings in ({"fast_dev_run": True}, {}):
        assert fit(AttributionMonitor(FACTS[:2], every_n_steps=1), **settings).losses


def test_a_later_run_attributes_its_own_model(tmp_path: Path):
    monitor = AttributionMonitor(iter(FACTS), every_n_steps=4, at_validation_end=False)
    for name in ("a", "b"):
        fit(monitor, logger=csv_logger(tmp_path / name))
    assert read_csv(tmp_path / "a") == read_csv(tmp_path / "b")


class Breaking(StrangersModule):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            nn.init.constant_(self.lm.transformer.ln_f.weight, float("nan"))


def test_non_finite_numbers_do_not_stop_the_training(tmp_path: Path):
    module = Breaking()
    monitor = AttributionMonitor(FACTS[:3], every_n_steps=2)
    make_trainer(monitor, logger=csv_logger(tmp_path), max_epochs=1).fit(module, loader())
    assert len(module.losses) == 6
    found = read_csv(tmp_path)
    assert [found[step]["contrasts"] for step in (0, 2, 4, 6)] == [3, 3, 0, 0]
    assert set(found[4]) == {"contrasts"}


class Pair(StrangersModule):
    """A student, a teacher outside the module tree, and an encoder without a head."""

    def __init__(self) -> None:
        super().__init__()
        config = GPT2Config(vocab_size=len(self.tokenizer), **SMALL)
        self.encoder = GPT2Model(config)
        self.teachers = SimpleNamespace(best=GPT2LMHeadModel(config))


def test_finds_the_language_model():
    for path in (None, "lm", "net", "teachers.best"):
        monitor, module = AttributionMonitor(FACTS[:2], model=path), Pair()
        make_trainer(monitor, fast_dev_run=True).fit(module, loader(), loader())
        assert monitor._plan.language_model is (module.teachers.best if path == "teachers.best" else module.lm)


def test_accepts_a_compiled_language_model():
    module = StrangersModule()
    module.net = nn.ModuleDict({"lm": torch.compile(module.lm, backend="eager")})
    make_trainer(AttributionMonitor(FACTS[:2], every_n_steps=1), fast_dev_run=True).fit(module, loader())
    assert len(module.losses) == 1


class Headless(StrangersModule):
    def __init__(self) -> None:
        super().__init__()
        self.net["lm"] = self.lm.transformer


class Two(StrangersModule):
    def __init__(self) -> None:
        super().__init__()
        self.net["teacher"] = GPT2LMHeadModel(GPT2Config(vocab_size=len(self.tokenizer), **SMALL))


class WithoutTokenizer(StrangersModule):
    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = None


class FunctionAsTokenizer(StrangersModule):
    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = lambda text: [ord(letter) for letter in text]


NO_TOKENIZER = "AttributionMonitor.tokenizer: neither the module nor the data module has one of transformers"


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (
            Headless,
            {},
            r"AttributionMonitor.model: Headless holds 0 language models of transformers \(\), not one",
        ),
        (
            Two,
            {},
            r"AttributionMonitor.model: Two holds 2 .* \(net.lm, net.teacher\), not one; name its attribute",
        ),
        (StrangersModule, {"model": "net.x"}, "AttributionMonitor.model: .* has no attribute 'x'; check the path"),
        (WithoutTokenizer, {}, NO_TOKENIZER),
        (FunctionAsTokenizer, {}, NO_TOKENIZER),
        (
            StrangersModule,
            {"facts": "no.csv"},
            "^AttributionMonitor.facts: there is no file no.csv; check the path",
        ),
        (StrangersModule, {"facts": [{**FACTS[0], "subject": "x"}]}, "^AttributionMonitor.facts: no row of 1"),
        (StrangersModule, {"layers": 7}, "^AttributionMonitor.layers: there is no layer 7"),
        (StrangersModule, {"component": "no"}, "^AttributionMonitor.component: 'no' is none of mlp"),
        (StrangersModule, {"rule": "no"}, "^AttributionMonitor.rule: 'no' is none of gradient"),
        (
            StrangersModule,
            {"rule_options": RuleOptions(frozen_attention=True)},
            "^AttributionMonitor.rule_options.frozen_attention: it belongs to the rule linearised",
        ),
        (
            StrangersModule,
            {"at_validation_end": False},
            "^AttributionMonitor.every_n_steps: there is no validation",
        ),
    ],
)
def test_refuses_mistakes_before_the_first_step(module: type[StrangersModule], settings: dict, message: str):
    stranger = module()
    trainer = make_trainer(AttributionMonitor(**{"facts": FACTS[:2], **settings}))
    with pytest.raises(UserError, match=message) as raised:
        trainer.fit(stranger, loader(), loader(8))
    assert "\n" not in str(raised.value)
    assert not stranger.losses


def test_refuses_numbers_below_one():
    with pytest.raises(UserError, match=r"^AttributionMonitor.every_n_steps: 0 is less than 1; give 1 or more$"):
        AttributionMonitor(FACTS, every_n_steps=0)
    for name in ("limit", "max_tokens"):
        with pytest.raises(UserError, match=f"^AttributionMonitor.{name}: 0 is less than 1"):
            AttributionMonitor(FACTS, **{name: 0})


def test_refuses_sharded_weights(monkeypatch: pytest.MonkeyPatch):
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    monitor = AttributionMonitor(FACTS)
    monitor.setup(trainer, StrangersModule(), "validate")
    with pytest.raises(UserError, match="trainer.strategy: AttributionMonitor needs weights whole"):
        monitor.on_validation_start(trainer, StrangersModule())


def test_leaves_out_unusable_rows(tmp_path: Path):
    facts = [{**FACTS[0], "subject": None}, *FACTS]
    fit(AttributionMonitor(facts, limit=5), logger=csv_logger(tmp_path))
    assert {numbers["contrasts"] for numbers in read_csv(tmp_path).values()} == {4}


def test_components_are_attributed_side_by_side(tmp_path: Path):
    """With the numbers of a monitor of each."""

    def logged(component: str | list[str], name: str) -> dict[str, float]:
        monitor = AttributionMonitor(FACTS[:3], every_n_steps=6, layers=[0, -1], component=component)
        fit(monitor, logger=csv_logger(tmp_path / name), max_epochs=1)
        return read_csv(tmp_path / name)[6]

    both, mlp, attention = (
        logged(each, str(at)) for at, each in enumerate((["mlp", "attention"], "mlp", "attention"))
    )
    assert {name: both[name] for name in mlp} == mlp
    for name, value in attention.items():
        kind, slash, role = name.partition("/")
        assert both[f"{kind}_attention/{role}" if slash else name] == value
    assert len(both) == len(mlp) + sum("/" in name for name in attention)


def write_and_gradient(module: StrangersModule, prompt: str, answers: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What the last layer's MLP writes at the last token, and its gradient, by a plain hook."""
    kept: list[Tensor] = []

    def keep(mlp: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    lm = module.lm.eval()
    handle = lm.transformer.h[-1].mlp.register_forward_hook(keep)
    logits_V = lm(**module.tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    handle.remove()
    (logits_V[answers[0]] - logits_V[answers[1]]).backward()
    return kept[0][0, -1].detach(), kept[0].grad[0, -1]


def test_resample_ablation_subtracts_the_donors_write(tmp_path: Path):
    """Two facts, each the only possible donor of the other."""
    row = {"relation": "The capital of {} is", "target_true": "Madrid", "target_false": "Rome"}
    facts = [
        {**row, "prompt": "The capital of Spain is", "subject": "Spain"},
        {**row, "prompt": "The capital of Italy is", "subject": "Italy", "target_true": "Rome"}
        | {"target_false": "Madrid"},
    ]
    monitor = AttributionMonitor(facts, layers=-1, ablation="resample", at_validation_end=True)
    fit(monitor, logger=csv_logger(tmp_path), max_epochs=1)
    module = StrangersModule()
    madrid, rome = (
        module.tokenizer(f" {city}", add_special_tokens=False).input_ids[0] for city in ("Madrid", "Rome")
    )
    spain_H, spain_gradient_H = write_and_gradient(module, facts[0]["prompt"], (madrid, rome))
    italy_H, italy_gradient_H = write_and_gradient(module, facts[1]["prompt"], (rome, madrid))
    expected = ((spain_H - italy_H) @ spain_gradient_H + (italy_H - spain_H) @ italy_gradient_H) / 2
    assert read_csv(tmp_path)[0]["score/last"] == pytest.approx(expected.item(), abs=1e-5)


def test_the_rule_is_prepared_with_the_weights_of_the_moment(tmp_path: Path):
    monitor = AttributionMonitor(
        FACTS[:2], rule="linearised", rule_options=RuleOptions(frozen_attention=True), layers=-1
    )
    last = fit(monitor, logger=csv_logger(tmp_path))
    lm, location = last.lm.eval(), locate(last.lm, layers=-1)
    rule = find_rule(lm, location, "linearised", frozen_attention=True)
    contrasts, _ = build_contrasts(read_facts(FACTS[:2]).facts, last.tokenizer)
    scored = attribute_batch(lm, location, collate_contrasts(contrasts), rule=rule)
    places = [len(each.token_ids) - 1 for each in contrasts]
    expected = np.mean([float(scored.scores_sum_BLT[at, 0, place]) for at, place in enumerate(places)])
    assert read_csv(tmp_path)[12]["score/last"] == pytest.approx(expected, abs=1e-5)


def test_refuses_mean_ablation():
    with pytest.raises(UserError, match=r"^AttributionMonitor.ablation: 'mean' is neither zero nor resample$"):
        AttributionMonitor(FACTS, ablation="mean")
