"""Compares the rows per second of lit-attr and its alternatives in one sitting: `python scripts/benchmark.py`.

All contenders get the same facts and the same model, with random weights. Before anything is timed, their scores
are compared with lit-attr's. Then they take turns, and the medians are printed. Peers come with
`pip install '.[peers]'`; one that is not installed is left out.

    core             lit-attr's core alone
    predict          the whole of lit-attr: a Trainer with data module, JSON records and TensorBoard, without exact
                     effects. The self-test of the model is part of it, and not of core
    hooks            plain PyTorch hooks and `.backward()`, 32 rows in the order of the source
    captum           Captum with a list of layers, 32 rows in the order of the source
    captum, sorted   the same with two logits only and core's batches
    inseq            Inseq as in its documentation: one row and one layer at a time (over --inseq_rows rows)
"""

from __future__ import annotations

import json
import logging
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from contenders import CONTENDERS, PEERS, Setting, core
from jsonargparse import auto_cli
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lit_attr.facts.buckets import in_batches
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.loading import DEMO_MODEL, Dtype, Quantization, load_model, load_tokenizer
from lit_attr.models.location import locate

SHAPES = {
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
# The largest allowed difference between two contenders, relative to the row's largest score.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}


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
        source: The facts, as in `lit-attr predict --data.source`.
        tokenizer: Name or folder of a tokenizer, whose vocabulary the model gets.
        rows: Number of facts.
        repeats: Number of turns of each contender.
        threads: Number of PyTorch threads on the CPU.
        dtype: Number format of the weights.
        quantization: `8bit` or `4bit`.
        device: Device of the model.
        max_tokens: Maximum number of tokens in a batch, padding included, for core, predict and the sorted Captum.
        attn_implementation: `sdpa` or `eager`; default: transformers' choice.
        contenders: Which to time, always with `core`; default: all that are installed.
        inseq_rows: Number of facts for Inseq.
        out: JSON file for the figures.
    """
    torch.set_num_threads(threads)
    chosen = {*(contenders or CONTENDERS), "core"}
    names = [name for name in CONTENDERS if name in chosen and (name not in PEERS or find_spec(PEERS[name]))]
    words = load_tokenizer(tokenizer)
    model = _random_model(
        SHAPES[shape],
        len(words),
        dtype=dtype,
        quantization=quantization,
        attn_implementation=attn_implementation,
        device=torch.device(device),
    )
    taken = [row for row, _ in zip(open_rows(source), range(rows), strict=False)]
    contrasts, _ = build_contrasts(read_facts(taken).facts, words)
    batches = in_batches(contrasts, max_tokens=max_tokens)
    setting = Setting(model, words, locate(model), taken, contrasts, batches, inseq_rows)
    differences = _compare(setting, names)
    seconds, memory, peak = _take_turns(setting, names, repeats, max_tokens)
    tokens = sum(len(contrast.token_ids) for contrast in contrasts)
    padded = sum(len(batch) * len(batch[0].token_ids) for batch in batches)
    # For each weight of a block and each token, two operations forward and two backward to the activations.
    floor = 4 * 12 * model.config.n_embd**2 * model.config.n_layer * tokens
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
    settings = {"shape": shape, "rows": len(contrasts), "tokens": tokens, "padding": padded / tokens - 1}
    settings |= {"threads": threads, "dtype": dtype, "quantization": quantization, "device": _device_name(device)}
    settings |= {
        "max_tokens": max_tokens,
        "attention": model.config._attn_implementation,
        "matmul_gflops": peak / 1e9,
    }
    Path(out).write_text(json.dumps({**settings, "contenders": figures}, indent=1))
    _print_figures(settings, figures)


def _random_model(shape: dict[str, int], vocabulary: int, *, dtype: Dtype, **options: Any) -> PreTrainedModel:
    """Makes a GPT-2 with random weights, and loads it as lit-attr loads any model."""
    end = vocabulary - 1
    config = GPT2Config(**shape, vocab_size=vocabulary, bos_token_id=end, eos_token_id=end)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(config).to(getattr(torch, dtype)).save_pretrained(folder)
        model = load_model(folder, dtype=dtype, **options)
    return model if options["quantization"] else model.to(options["device"])


def _take_turns(
    setting: Setting, names: Sequence[str], repeats: int, max_tokens: int
) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Times the contenders in turns: seconds and peak memory of each, and the peak of the matrix product."""
    device = setting.model.device.type
    peak = _matmul_peak(setting.model, max_tokens)
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
        peak = max(peak, _matmul_peak(setting.model, max_tokens))
    return seconds, memory, peak


def _print_figures(settings: dict[str, Any], figures: dict[str, dict[str, Any]]) -> None:
    rounded = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in settings.items()}
    print(", ".join(f"{key} {value}" for key, value in rounded.items()))
    print(f"{'':16}{'rows/s':>9}{'core is':>9}{'of peak':>9}{'GiB':>7}")
    for name, figure in figures.items():
        times = figures["core"]["rows_per_second"] / figure["rows_per_second"]
        print(
            f"{name:16}{figure['rows_per_second']:9.2f}{times:8.2f}x{figure['share_of_matmul_peak']:9.1%}"
            f"{figure['peak_memory_gib']:7.2f}"
        )


def _compare(setting: Setting, names: Iterable[str]) -> dict[str, float]:
    """Runs each contender once over a few rows, and stops where its scores differ from those of core."""
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


def _matmul_peak(model: PreTrainedModel, tokens: int) -> float:
    """The peak rate of operations per second of a matrix product of the MLP's shape."""
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
    """Peak memory of the GPU; on a CPU, of the process since the last reset where the system has one."""
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
