"""Processes that share a model, each with passes of its own."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from architectures import random_contrasts
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from lit_attr.attribution.catalogue import RuleName, find_rule
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.identity import fingerprint
from lit_attr.models.location import Location, decoder_stack, locate

# Processes share a model on the machine's accelerator, where it has one.
CAN_SHARE = pytest.mark.skipif(
    torch.accelerator.is_available() or "fsdp_plan" not in DistributedConfig.__dataclass_fields__,
    reason="there is an accelerator, or transformers takes no plans",
)
ONE_PASS: tuple[RuleName, ...] = ("gradient", "frozen-norm", "linearised", "norm-secant")
_CONTEXT = multiprocessing.get_context("forkserver")


def passes_of(model: PreTrainedModel, location: Location, rank: int) -> dict[str, Tensor]:
    """Scores and exact effects of contrasts that no other process has, from more passes in later processes."""
    found = {}
    for turn in range(rank + 1):
        batch = collate_contrasts(random_contrasts((5 + rank, 4, 7 + turn)))
        for name in ONE_PASS:
            scored = attribute_batch(model, location, batch, rule=find_rule(model, location, name))
            found[f"{turn} {name}"] = scored.scores_sum_BLT
        if rank:
            found[f"{turn} exact"] = exact_effects_BLT(model, location, batch)
    return found


def resident_mebibytes(path: Path) -> float:
    """How much of a file this process has mapped and in memory; 0 where the system does not say."""
    resident, is_of_file, maps = 0, False, Path("/proc/self/smaps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        if "-" in line.split()[0]:
            is_of_file = line.endswith(str(path))
        elif is_of_file and line.startswith("Rss:"):
            resident += int(line.split()[1])
    return resident / 1024


def share(folder: Path, out: Path, processes: int) -> list[dict[str, Any]]:
    """What each process finds that has a part of the model in a folder.

    Returns:
        For each process, the results of `passes_of`; the exact effects of one more contrast that the first process
        computes `after waiting`; and the model's `fingerprint`, how many weights it has in `parts`, and the
        `largest part` of one, which weights are `whole in blocks` in the end, and the `file` in memory in MiB.
    """
    started = [_CONTEXT.Process(target=_share, args=(rank, processes, folder, out)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
        assert process.exitcode == 0
    return [torch.load(out / f"{rank}.pt") for rank in range(processes)]


def _share(rank: int, processes: int, folder: Path, out: Path) -> None:
    # Imported here: it takes seconds, and the test's own process does without.
    from lit_attr.models.weights.sharding import SharedBlocks, load_sharded_model

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=processes)
    model = load_sharded_model(str(folder), processes, torch.device("cpu", rank))
    parts = [
        weight.to_local().numel() / weight.numel() for weight in model.parameters() if isinstance(weight, DTensor)
    ]
    shared = SharedBlocks(model)
    found: dict[str, Any] = {"fingerprint": fingerprint(model), "largest part": max(parts), "parts": len(parts)}
    found["file"] = resident_mebibytes(folder / "model.safetensors")
    location = locate(model, component=["mlp", "attention"])
    found |= passes_of(model, location, rank)
    shared.wait()
    if rank == 0:
        batch = collate_contrasts(random_contrasts((6,)))
        found["after waiting"] = exact_effects_BLT(model, location, batch)
    shared.leave()
    # What a pass leaves gathered would add up to the whole model.
    blocks = model.get_submodule(decoder_stack(model))
    found["whole in blocks"] = [
        name for name, weight in blocks.named_parameters() if not isinstance(weight, DTensor)
    ]
    torch.save(found, out / f"{rank}.pt")
    dist.destroy_process_group()
