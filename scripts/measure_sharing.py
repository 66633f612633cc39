"""Measures the memory of processes that share a model: `python scripts/measure_sharing.py`. Linux only.

Makes a Llama with random weights, and `lit-attr predict` attributes a few of the sample facts to it, with exact
effects. Prints in Markdown each process's peak of resident memory, how much that is above the same run with blocks
of almost no width, and the sum of what a process holds of the model: its share of the blocks, the embeddings,
and one whole block. The pages of the weights' file that a process has read count as its memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from jsonargparse import auto_cli
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_attr.models.loading import DEMO_MODEL, load_tokenizer

MEBIBYTE = 2**20
STRATEGY = "lightning.pytorch.strategies.ModelParallelStrategy"
SECONDS_BETWEEN_READINGS = 0.1


def measure(processes: int = 2, layers: int = 18, width: int = 1024, facts: int = 12, verify: int = 1) -> None:
    """Measures and prints.

    Args:
        processes: How many processes share the model.
        layers: How many blocks the model has.
        width: The width of the residual stream.
        facts: How many facts are attributed.
        verify: For how many of them exact effects are computed.
    """
    words = load_tokenizer(DEMO_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for name, size in (("narrow", 8), ("wide", width)):
            config = LlamaConfig(
                vocab_size=len(words),
                hidden_size=size,
                intermediate_size=3 * size,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=256,
                bos_token_id=0,
                eos_token_id=0,
            )
            model = LlamaForCausalLM(config)
            model.save_pretrained(f"{folder}/{name}")
            words.save_pretrained(f"{folder}/{name}")
            command = [sys.executable, "-m", "lit_attr", "predict", "--model.model_name", f"{folder}/{name}"]
            command += ["--model.verify", str(verify), "--data.limit", str(facts), "--trainer.logger", "false"]
            command += ["--trainer.strategy", STRATEGY, "--trainer.accelerator", "cpu"]
            command += ["--trainer.devices", str(processes), "--writer.output_dir", f"{folder}/of_{name}"]
            peaks[name] = _peaks(command, processes)
    whole, block = _size(model), _size(model.model.layers[0])
    others = whole - layers * block
    expected = layers * block / processes + others + block
    print(f"model {whole:.0f} MiB: {layers} blocks of {block:.0f} MiB, {others:.0f} MiB of embeddings and norms")
    print(
        f"{processes} processes, each with its share of the blocks, embeddings and one block: {expected:.0f} MiB"
    )
    print("\n| process, the largest first | peak, MiB | with narrow blocks | difference |\n|---|---|---|---|")
    for place, (wide, narrow) in enumerate(zip(peaks["wide"], peaks["narrow"], strict=True), start=1):
        print(f"| {place} | {wide:.0f} | {narrow:.0f} | {wide - narrow:.0f} |")


def _size(module: nn.Module) -> float:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters()) / MEBIBYTE


def _peaks(command: list[str], processes: int) -> list[float]:
    """Runs a command, and returns the peaks of resident memory of its processes, in MiB, the largest first."""
    run = subprocess.Popen(command)
    peaks: dict[int, float] = {}
    while run.poll() is None:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        for process in (run.pid, *map(int, children)):
            # A process may end meanwhile.
            with suppress(FileNotFoundError, ProcessLookupError):
                for line in Path(f"/proc/{process}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peaks[process] = int(line.split()[1]) / 1024
        time.sleep(SECONDS_BETWEEN_READINGS)
    if run.returncode:
        raise SystemExit(f"the run ended with status {run.returncode}")
    # Beside the run's own there are short-lived ones.
    return sorted(peaks.values(), reverse=True)[:processes]


if __name__ == "__main__":
    auto_cli(measure)
