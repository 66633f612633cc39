"""Times exact effects against gradients in one sitting: `python scripts/benchmark_exact.py`.

All contenders get the same facts and a model with random weights in the shape of GPT-2 small. They take turns, and
the medians are printed. Before anything is timed, the exact effects are compared with the naive ones. Inseq comes
with `pip install '.[peers]'`.

    gradient     lit-attr's gradient x activation
    norm-secant  the same with the exact changes of the norms
    exact        zero ablation at every layer and token by `lit_attr.attribution.exact.effects`
    naive        the same with a whole forward pass of all rows for each layer and token
    inseq        Inseq's gradient x activation as in its documentation: one row and one layer at a time
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice

import torch
from benchmark import SHAPES
from contenders import Setting, inseq
from jsonargparse import auto_cli
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lit_attr.attribution.catalogue import find_rule
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.passes import difference_B, last_logits_BV, only_last_logits
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.hooks import undisturbed
from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer
from lit_attr.models.location import locate


@torch.no_grad()
def naive_effects_BLT(setting: Setting, batch: ContrastBatch) -> Tensor:
    """Runs a whole forward pass for each layer and token, over the rows that have the token."""
    effects_BLT = torch.zeros(len(batch.contrasts), len(setting.location.layers), batch.token_ids_BT.shape[1])

    def differences_B(part: ContrastBatch) -> Tensor:
        with only_last_logits(setting.model, part):
            return difference_B(last_logits_BV(setting.model, part), part)

    with undisturbed(setting.model, batch.token_ids_BT.device):
        clean_B = differences_B(batch)
        for token in range(batch.token_ids_BT.shape[1]):
            rows = [row for row, last in enumerate(batch.last_B.tolist()) if last >= token]
            part = batch.select(rows)
            for place, module in enumerate(setting.location.modules):

                def ablate(_: object, __: object, output: Tensor, token: int = token) -> Tensor:
                    output[:, token] = 0
                    return output

                hook = module.register_forward_hook(ablate)
                effects_BLT[rows, place, token] = clean_B[rows] - differences_B(part)
                hook.remove()
    return effects_BLT


def benchmark(
    source: str = "sample",
    tokenizer: str = DEMO_MODEL,
    rows: int = 64,
    batch_size: int = 16,
    repeats: int = 3,
    threads: int = 1,
    inseq_repeats: int = 1,
) -> None:
    """Times the contenders.

    Args:
        source: The facts, as in `lit-attr predict --data.source`.
        tokenizer: Name or folder of a tokenizer, whose vocabulary the model gets.
        rows: Number of facts.
        batch_size: Rows of a batch, sorted by length, for all but Inseq.
        repeats: Number of turns of each contender.
        threads: Number of PyTorch threads.
        inseq_repeats: Number of turns of Inseq; 0 leaves it out.
    """
    torch.set_num_threads(threads)
    words = load_tokenizer(tokenizer)
    config = GPT2Config(**SHAPES["gpt2"], vocab_size=len(words))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(config).save_pretrained(folder)
        model = load_model(folder)
    taken = [*islice(open_rows(source), rows)]
    contrasts, _ = build_contrasts(read_facts(taken).facts, words)
    contrasts.sort(key=lambda contrast: len(contrast.token_ids))
    parts = [contrasts[start : start + batch_size] for start in range(0, len(contrasts), batch_size)]
    batches = [collate_contrasts(part) for part in parts]
    setting = Setting(model, words, locate(model), taken, contrasts, parts, len(contrasts))
    secant = find_rule(model, setting.location, "norm-secant")

    first = batches[0]
    exact_BLT, naive_BLT = exact_effects_BLT(model, setting.location, first), naive_effects_BLT(setting, first)
    difference = ((exact_BLT - naive_BLT).abs().max() / naive_BLT.abs().max()).item()
    if difference > 1e-4:
        raise SystemExit(f"the exact effects differ from the naive ones by {difference:.2g} of the largest")

    contenders: dict[str, Callable[[], object]] = {
        "gradient": lambda: [attribute_batch(model, setting.location, batch) for batch in batches],
        "norm-secant": lambda: [attribute_batch(model, setting.location, batch, rule=secant) for batch in batches],
        "exact": lambda: [exact_effects_BLT(model, setting.location, batch) for batch in batches],
        "naive": lambda: [naive_effects_BLT(setting, batch) for batch in batches],
        "inseq": lambda: [*inseq(setting)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name, run in contenders.items():
            if name == "inseq" and turn >= inseq_repeats:
                continue
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    tokens = sum(len(contrast.token_ids) for contrast in contrasts)
    print(f"{len(contrasts)} rows, {tokens} tokens, {threads} threads; exact and naive differ by {difference:.1e}")
    exact = statistics.median(seconds["exact"])
    for name, taken_s in seconds.items():
        if taken_s:
            median = statistics.median(taken_s)
            print(f"{name:12}{len(contrasts) / median:9.2f} rows/s{median / exact:9.2f} times exact's time")


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
