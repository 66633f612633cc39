"""Rows a second of lit-attr and of what people write instead, in one sitting: `python scripts/benchmark.py`.

All get the same facts and the same model, of random weights in the shape asked for. Their scores are compared with
lit-attr's before anything is timed; then they take turns, and medians are shown. Peers come with `pip install
'.[peers]'`; one that is not installed is left out.

    core             lit-attr's core alone
    predict          lit-attr whole: a Trainer with data module, JSON records and TensorBoard, but for the
                     comparison with exact effects
    hooks            plain PyTorch hooks and `.backward()`, 32 rows as they come
    captum           Captum with a list of layers, 32 rows as they come
    captum, sorted   the same with two logits only, and core's own batches
    inseq            Inseq as in its documentation: a row and a layer at a time (over --inseq_rows rows)
"""

from __future__ import annotations

import json
import logging
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from jsonargparse import auto_cli
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from lit_attr import AttributionModule, AttributionWriter, CounterfactDataModule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.contrasts import Contrast, build_contrasts, collate_contrasts
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import open_rows
from lit_attr.models.loading import DEMO_MODEL, Quantization, load_model, load_tokenizer
from lit_attr.models.location import Location, locate

SHAPES = {
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
ROWS_AS_THEY_COME = 32
# What is asked of scores: their largest difference over the row's largest score.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}


class Setting(NamedTuple):
    """What every contender is given."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    location: Location
    rows: list[Any]
    contrasts: list[Contrast]
    batches: list[list[Contrast]]
    inseq_rows: int


# Takes the contrasts to attribute and yields each one's scores by its id, or, where it only writes them, nothing.
Contender = Callable[[Setting], Iterator[tuple[Any, Tensor]]]


def core(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """lit-attr's core alone."""
    for contrasts in setting.batches:
        batch = collate_contrasts(contrasts).to(setting.model.device)
        scores_BLT = attribute_batch(setting.model, setting.location, batch).to("cpu").scores_sum_BLT
        yield from _by_id(contrasts, scores_BLT)


def predict(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """lit-attr whole, under a Trainer; its scores are in files, so it yields none."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=setting.model.device.type,
            devices=1,
            logger=TensorBoardLogger(folder),
            callbacks=[AttributionWriter(folder, verify=0)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = AttributionModule(model=setting.model, tokenizer=setting.tokenizer)
        data = CounterfactDataModule(setting.rows, max_tokens=_largest(setting.batches))
        trainer.predict(module, datamodule=data, return_predictions=False)
        return
        yield


def hooks(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """Plain PyTorch: forward hooks, `retain_grad` and `.backward()`."""
    model = setting.model
    kept: list[Tensor] = []

    def keep(_: Any, __: Any, output: Tensor) -> Tensor:
        output.requires_grad_()
        output.retain_grad()
        kept.append(output)
        return output

    handles = [module.register_forward_hook(keep) for module in setting.location.modules]
    for contrasts, inputs, answers in _as_they_come(setting):
        kept.clear()
        _difference(model(**inputs).logits, *answers).sum().backward()
        yield from _by_id(contrasts, _summed([activation * activation.grad for activation in kept]))
        model.zero_grad()
    for handle in handles:
        handle.remove()


def captum(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """Captum with a list of layers."""
    from captum.attr import LayerGradientXActivation

    def forward(token_ids_BT: Tensor, mask_BT: Tensor, *answers: Tensor) -> Tensor:
        return _difference(setting.model(input_ids=token_ids_BT, attention_mask=mask_BT).logits, *answers)

    peer = LayerGradientXActivation(forward, list(setting.location.modules))
    for contrasts, inputs, answers in _as_they_come(setting):
        extra = (inputs["attention_mask"], *answers)
        layers = peer.attribute(inputs["input_ids"], additional_forward_args=extra)
        yield from _by_id(contrasts, _summed(layers))


def captum_sorted(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """Captum given what makes core fast, its kernels aside."""
    from captum.attr import LayerGradientXActivation

    model = setting.model
    unembedding_VH = model.get_output_embeddings().weight

    def forward(token_ids_BT: Tensor, last_B: Tensor, true_B: Tensor, false_B: Tensor) -> Tensor:
        hidden_BTH = model.base_model(input_ids=token_ids_BT, use_cache=False).last_hidden_state
        hidden_BH = hidden_BTH[torch.arange(len(last_B), device=last_B.device), last_B]
        return (hidden_BH * (unembedding_VH[true_B] - unembedding_VH[false_B])).sum(-1)

    peer = LayerGradientXActivation(forward, list(setting.location.modules))
    for contrasts in setting.batches:
        batch = collate_contrasts(contrasts).to(model.device)
        extra = (batch.last_B, batch.true_token_ids_B, batch.false_token_ids_B)
        layers = peer.attribute(batch.token_ids_BT, additional_forward_args=extra)
        yield from _by_id(contrasts, _summed(layers))


def inseq(setting: Setting) -> Iterator[tuple[Any, Tensor]]:
    """Inseq, a row and a layer at a time."""
    import inseq as library

    scores: dict[Any, list[Tensor]] = {}
    contrasts = setting.contrasts[: setting.inseq_rows]
    for path in setting.location.paths:
        peer = library.load_model(
            setting.model, "layer_gradient_x_activation", tokenizer=setting.tokenizer, target_layer=path
        )
        for contrast in contrasts:
            fact = contrast.fact
            attributions = peer.attribute(
                fact.prompt,
                fact.prompt + fact.target_true,
                attributed_fn="contrast_logits_diff",
                contrast_targets=fact.prompt + fact.target_false,
                show_progress=False,
            )
            products_TH = attributions.sequence_attributions[0].target_attributions[: len(contrast.tokens), 0]
            scores.setdefault(fact.id, []).append(products_TH.sum(-1).cpu())
    for contrast in contrasts:
        yield contrast.fact.id, torch.stack(scores[contrast.fact.id])


CONTENDERS: dict[str, Contender] = {
    "core": core,
    "predict": predict,
    "hooks": hooks,
    "captum": captum,
    "captum, sorted": captum_sorted,
    "inseq": inseq,
}
# The package that a contender needs.
PEERS = {"captum": "captum", "captum, sorted": "captum", "inseq": "inseq"}


def benchmark(
    shape: Literal["tiny", "gpt2", "gpt2-medium", "gpt2-xl"] = "gpt2",
    source: str = "sample",
    tokenizer: str = DEMO_MODEL,
    rows: int = 256,
    repeats: int = 3,
    threads: int = 1,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    quantization: Quantization | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    max_tokens: int = 1024,
    attn_implementation: str | None = None,
    contenders: list[str] | None = None,
    inseq_rows: int = 2,
    out: str = "benchmark.json",
) -> None:
    """Times the contenders.

    Args:
        shape: Size of the model.
        source: The facts, as `lit-attr predict --data.source` takes them.
        tokenizer: Name or folder; the model's vocabulary is as large as this one's.
        rows: How many facts.
        repeats: How often each contender has its turn.
        threads: Of PyTorch on the CPU.
        dtype: Of the weights.
        quantization: `8bit` or `4bit`.
        device: Where the model is.
        max_tokens: Tokens of a batch with padding, for core, predict and the sorted Captum.
        attn_implementation: `sdpa` or `eager`; default: as transformers chooses.
        contenders: Which to time; default: all that are installed. `core` always is.
        inseq_rows: How many of the facts Inseq gets.
        out: JSON file for the figures.
    """
    torch.set_num_threads(threads)
    chosen = {*(contenders or CONTENDERS), "core"}
    names = [name for name in CONTENDERS if name in chosen and (name not in PEERS or find_spec(PEERS[name]))]
    with tempfile.TemporaryDirectory() as folder:
        words = load_tokenizer(tokenizer)
        last = len(words) - 1
        config = GPT2Config(**SHAPES[shape], vocab_size=len(words), bos_token_id=last, eos_token_id=last)
        torch.manual_seed(0)
        GPT2LMHeadModel(config).to(getattr(torch, dtype)).save_pretrained(folder)
        model = load_model(
            folder,
            dtype=dtype,
            quantization=quantization,
            attn_implementation=attn_implementation,
            device=torch.device(device),
        )
    model = model if quantization else model.to(device)
    taken = [row for row, _ in zip(open_rows(source), range(rows), strict=False)]
    contrasts, _ = build_contrasts(read_facts(taken).facts, words)
    data = CounterfactDataModule(taken, tokenizer=words, max_tokens=max_tokens)
    data.setup()
    batches = [list(batch.contrasts) for batch in data.predict_dataloader()]
    setting = Setting(model, words, locate(model), taken, contrasts, batches, inseq_rows)
    differences = _compare(setting, names)
    peak = _matmul_peak(model, max_tokens)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    for _ in range(repeats):
        for name in names:
            _reset_peak_memory(device)
            started = time.perf_counter()
            for _scores in CONTENDERS[name](setting):
                pass
            _synchronize(device)
            seconds[name].append(time.perf_counter() - started)
            memory[name] = _peak_memory_gib(device)
        peak = max(peak, _matmul_peak(model, max_tokens))
    tokens = sum(len(contrast.token_ids) for contrast in contrasts)
    padded = sum(len(batch) * len(batch[0].token_ids) for batch in batches)
    # Two operations a block's weight and token forward, two backward to the activations.
    floor = 4 * 12 * config.n_embd**2 * config.n_layer * tokens
    figures = {
        name: {
            "rows_per_second": (rate := done / statistics.median(seconds[name])),
            "share_of_matmul_peak": rate / len(contrasts) * floor / peak,
            "peak_memory_gib": memory[name],
            "seconds": seconds[name],
            "largest_difference": differences.get(name),
        }
        for name in names
        for done in [inseq_rows if name == "inseq" else len(contrasts)]
    }
    asked = {"shape": shape, "rows": len(contrasts), "tokens": tokens, "padding": padded / tokens - 1}
    asked |= {"threads": threads, "dtype": dtype, "quantization": quantization, "device": _device_name(device)}
    asked |= {
        "max_tokens": max_tokens,
        "attention": model.config._attn_implementation,
        "matmul_gflops": peak / 1e9,
    }
    Path(out).write_text(json.dumps({**asked, "contenders": figures}, indent=1))
    rounded = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in asked.items()}
    print(", ".join(f"{key} {value}" for key, value in rounded.items()))
    print(f"{'':16}{'rows/s':>9}{'core is':>9}{'of peak':>9}{'GiB':>7}")
    for name, figure in figures.items():
        times = figures["core"]["rows_per_second"] / figure["rows_per_second"]
        print(
            f"{name:16}{figure['rows_per_second']:9.2f}{times:8.2f}x{figure['share_of_matmul_peak']:9.1%}"
            f"{figure['peak_memory_gib']:7.2f}"
        )


def _compare(setting: Setting, names: Iterable[str]) -> dict[str, float]:
    """Runs each once over a few rows, and makes sure that it scores what core scores."""
    few = setting.contrasts[: max(16, setting.inseq_rows)]
    ours = setting._replace(contrasts=few, batches=[few[:8], few[8:]], rows=setting.rows[:16])
    expected = dict(core(ours))
    differences = {}
    for name in names:
        worst = 0.0
        for key, scores_LT in CONTENDERS[name](ours):
            difference_LT = (scores_LT - expected[key]).abs()
            worst = max(worst, float(difference_LT.max() / expected[key].abs().max()))
        if worst > AGREEMENT[setting.model.dtype]:
            raise SystemExit(f"{name}: scores differ from core's by {worst:.2g} of the largest")
        differences[name] = worst
    return differences


def _by_id(contrasts: Sequence[Contrast], scores_BLT: Tensor) -> Iterator[tuple[Any, Tensor]]:
    for contrast, scores_LT in zip(contrasts, scores_BLT, strict=True):
        yield contrast.fact.id, scores_LT[:, : len(contrast.tokens)].float()


def _as_they_come(setting: Setting) -> Iterator[tuple[list[Contrast], dict[str, Tensor], tuple[Tensor, ...]]]:
    for start in range(0, len(setting.contrasts), ROWS_AS_THEY_COME):
        contrasts = setting.contrasts[start : start + ROWS_AS_THEY_COME]
        batch = collate_contrasts(contrasts).to(setting.model.device)
        places_T = torch.arange(batch.token_ids_BT.shape[1], device=setting.model.device)
        mask_BT = (places_T <= batch.last_B[:, None]).long()
        answers = (batch.last_B, batch.true_token_ids_B, batch.false_token_ids_B)
        yield contrasts, {"input_ids": batch.token_ids_BT, "attention_mask": mask_BT}, answers


def _difference(logits_BTV: Tensor, last_B: Tensor, true_B: Tensor, false_B: Tensor) -> Tensor:
    logits_BV = logits_BTV[torch.arange(len(last_B), device=last_B.device), last_B]
    row_B = torch.arange(len(last_B), device=last_B.device)
    return logits_BV[row_B, true_B] - logits_BV[row_B, false_B]


def _summed(products: Sequence[Any]) -> Tensor:
    """The products of each layer, [B, T, H] or in a tuple, as scores [B, L, T]."""
    tensors = [each[0] if isinstance(each, tuple) else each for each in products]
    return torch.stack([products_BTH.sum(-1).detach() for products_BTH in tensors], 1).cpu()


def _largest(batches: Sequence[Sequence[Contrast]]) -> int:
    return max(len(batch) * len(batch[0].token_ids) for batch in batches)


def _matmul_peak(model: PreTrainedModel, tokens: int) -> float:
    """The most operations a second of the MLP's own matrix product."""
    width, device = model.config.n_embd, model.device
    left = torch.randn(tokens, width, device=device).to(model.dtype)
    right = torch.randn(width, 4 * width, device=device).to(model.dtype)
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(5):
            left @ right
        _synchronize(device.type)
        best = max(best, 5 * 2 * tokens * 4 * width**2 / (time.perf_counter() - started))
    return best


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _reset_peak_memory(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5")


def _peak_memory_gib(device: str) -> float:
    """Of the GPU; on a CPU the resident memory of the whole process, since the last reset where there is one."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    auto_cli(benchmark, as_positional=False)
