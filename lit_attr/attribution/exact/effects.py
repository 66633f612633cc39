"""Exact effects: the fall of the logit difference when one component's write at one token is replaced.

Gradient × activation is their first-order estimate.

Axes: B contrasts, L chosen layers, T tokens (padded on the right), N cells, H width of the component's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.exact.cells import Cells, most_shared, passes, replaced_by_place
from lit_attr.attribution.exact.prefix_reuse import CleanRun, run_clean, with_writes
from lit_attr.attribution.passes import (
    check_inputs,
    difference_B,
    is_out_of_memory,
    logit_spacing_B,
    only_last_logits,
    token_mask_BT,
    width_class_of,
)
from lit_attr.errors import ArgumentError, SharedModelError, warn_once
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import outputs_changed, undisturbed
from lit_attr.models.location import Location

# An effect is more than rounding noise from three standard deviations on; one difference of two computations of an
# effect estimates one.
NOISE = 3
# Cells × tokens that go through a layer together. More are no faster on a CPU.
MAX_TOKENS = 8192
# Rows × tokens of a pass over whole rows are this many times fewer: such a pass keeps something of each layer.
WHOLE_ROWS = 8


class ResolvedEffects(NamedTuple):
    """Exact effects and how far they are resolved.

    Attributes:
        effects_BLT: float32, in logits; 0 where there is padding, and in cells that are not wanted.
        resolution_B: float32, in logits: effects of smaller magnitude are rounding noise. Where every cell is
            wanted, it is three times the difference between two computations of one effect, and at least the
            spacing of the number format at the larger of the two logits. Where cells are chosen, it is this
            spacing alone, and 0 in rows without a chosen cell.
    """

    effects_BLT: Tensor
    resolution_B: Tensor


class _Part(NamedTuple):
    """Rows that go through the model together, the longest first.

    Attributes:
        model: The model.
        location: The modules whose outputs are replaced.
        batch: The contrasts.
        cells: The cells to compute, by row.
        replacement_of: The replacements for cells, [N, H] or [N, 1].
        max_tokens: Cells × tokens that go through a layer together.
        clean: A run of the rows without any change; None where it is still to be run.
        window: How many layers are replaced, each cell's own and those above it.
    """

    model: PreTrainedModel
    location: Location
    batch: ContrastBatch
    cells: Cells
    replacement_of: Callable[[Cells], Tensor]
    max_tokens: int
    clean: CleanRun | None
    window: int

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [len(contrast.token_ids) for contrast in self.batch.contrasts]


def exact_effects_BLT(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    replacement_BLTH: Tensor | None = None,
    *,
    wanted_BLT: Tensor | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """The effects of :func:`resolved_effects` alone: float32 in logits, axes contrast × layer × token."""
    effects = resolved_effects(
        model, location, batch, replacement_BLTH, wanted_BLT=wanted_BLT, max_tokens=max_tokens
    )
    return effects.effects_BLT


@torch.inference_mode(False)
@torch.no_grad()
def resolved_effects(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    replacement_BLTH: Tensor | None = None,
    *,
    wanted_BLT: Tensor | None = None,
    clean: CleanRun | None = None,
    window: int = 1,
    max_tokens: int = MAX_TOKENS,
) -> ResolvedEffects:
    """The fall of the logit difference when one layer's write at one token is replaced, for each cell wanted.

    `effect[l, t] = diff − diff with a[l, t, :] replaced`, where `a` is the component's write, `diff` is
    logit_true − logit_false after the last token, and all of the model above and after the cell responds to the
    change. This is zero, mean or resample ablation, or (with a donor from another prompt) activation patching: the
    causal tracing of Meng et al. (2022, arXiv:2202.05262) for one state.

    Tokens before t and layers below l are reused from one run without any change. All cells of a token, in all
    rows of about the same length, are then computed in one pass over the tokens from t on, which each joins before
    its layer. A cell so costs (L − l)(T − t) / (L · T) of a forward pass, about a quarter on average. Where a
    comparison with whole forward passes shows that the model does not support the reuse, every cell takes one.

    Args:
        model: A causal language model.
        location: The modules whose outputs `a` are replaced.
        batch: The contrasts, on the device of the model's embeddings.
        replacement_BLTH: What replaces each write, from `Ablation.replacement_BLTH`; zeros where None.
        wanted_BLT: bool, the cells to compute; the others are 0. Every cell where None.
        clean: A run of the same batch without any change, from `recorded_run`. Default: it is run here.
        window: How many writes at the token are replaced together: those of so many of the chosen layers, of one
            component, from the cell's own upwards. Cells with fewer layers above them are 0.
        max_tokens: Bounds memory: cells × tokens that go through a layer together. The layers of one contrast and
            token are never separated.

    Returns:
        The effects, with the layers as `location.layers`, on the device of the batch.

    Raises:
        ArgumentError: A token id has no embedding in the model, a context is longer than its positions, or the
            replacement or the mask has another shape.
    """
    check_inputs(location, batch)
    device = batch.token_ids_BT.device
    is_wanted_BLT = _wanted_BLT(wanted_BLT, location, batch, window)
    replacement_BLTH = _as_cells(replacement_BLTH, is_wanted_BLT.shape, device)
    effects_BLT = torch.zeros(is_wanted_BLT.shape, device=device)
    resolution_B = torch.zeros(len(effects_BLT), device=device)
    with undisturbed(model, device) as model:
        for row_B, part in _parts(
            model, location, batch, is_wanted_BLT, replacement_BLTH, max_tokens, clean, window
        ):
            effects_N, resolution_of_part_B = _part_effects(part, is_measured=wanted_BLT is None)
            row_N, place_N, token_N = part.cells
            effects_BLT[row_B[row_N], place_N, token_N] = effects_N.to(effects_BLT)
            resolution_B[row_B] = resolution_of_part_B.to(resolution_B)
    return ResolvedEffects(effects_BLT, resolution_B)


def _parts(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    is_wanted_BLT: Tensor,
    replacement_BLTH: Tensor,
    max_tokens: int,
    clean: CleanRun | None,
    window: int,
) -> Iterator[tuple[Tensor, _Part]]:
    """The parts of a batch, each with its rows of the batch. Rows without a wanted cell are in none."""
    lengths = [len(contrast.token_ids) for contrast in batch.contrasts]
    width_class = width_class_of(location)
    order = is_wanted_BLT.any(2).any(1).nonzero()[:, 0].tolist()
    order.sort(key=lambda row: -lengths[row])
    while order:
        width = lengths[order[0]]
        count = max(1, max_tokens // WHOLE_ROWS // width)
        rows = [row for row in order[:count] if width_class(lengths[row]) == width_class(width)]
        order = order[len(rows) :]
        row_B = torch.tensor(rows)

        def replacement_of(cells: Cells, row_B: Tensor = row_B) -> Tensor:
            return replacement_BLTH[row_B[cells.row_N], cells.place_N, cells.token_N]

        part = batch.select(rows)
        part = part.narrowed(width)
        cells = Cells.of(is_wanted_BLT[row_B])
        run = None if clean is None else clean.select(rows, width)
        yield row_B, _Part(model, location, part, cells, replacement_of, max_tokens, run, window)


def _part_effects(part: _Part, *, is_measured: bool) -> tuple[Tensor, Tensor]:
    """The effects [N] of a part's cells and their resolution [B], by reuse; else by whole forward passes.

    The effects by reuse are compared with those of whole forward passes: at one cell of each row where the
    resolution is measured, else at a single cell.
    """
    try:
        clean = part.clean or run_clean(part.model, part.location, part.batch)
        effects_N = clean.diff_B.new_zeros(len(part.cells.row_N))
        for index_N in passes(part.cells, part.lengths, part.max_tokens):
            cells = part.cells.select(index_N)
            effects_N[index_N] = clean.effects_N(cells, part.replacement_of, part.window)
        index_N = most_shared(part.cells, part.lengths, len(part.location.layers))[: None if is_measured else 1]
        checked = part.cells.select(index_N)
        plain_N = clean.diff_B[checked.row_N] - _plain_diff_N(part, checked).to(clean.diff_B)
        noise_N = (effects_N[index_N] - plain_N).abs()
        if not noise_N.max() <= clean.rounding:
            raise ValueError("the effects differ from those of a whole forward pass")
    except Exception as error:  # an error of the model itself is raised again by a whole forward pass
        if isinstance(error, SharedModelError) or is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        warn_once(
            f"exact effects of {type(part.model).__name__} take a whole forward pass for every layer and token, "
            f"several times as long, since the runs of its layers cannot be shared between cells ({reason})"
        )
        return _plain_effects(part)
    resolution_B = clean.spacing_B
    if is_measured:
        measured_B = torch.zeros_like(clean.diff_B)
        measured_B[checked.row_N] = NOISE * noise_N
        resolution_B = resolution_B.maximum(measured_B)
    return effects_N, resolution_B


def _plain_effects(part: _Part) -> tuple[Tensor, Tensor]:
    """The effects of a part's cells by a whole forward pass for each, and their resolution."""
    batch = part.batch
    with only_last_logits(part.model, batch):
        logits = part.model(input_ids=batch.token_ids_BT, use_cache=False).logits
    clean_B, cells = difference_B(logits, batch), part.cells
    effects_N = clean_B.new_zeros(len(cells.row_N))
    for index_N in torch.arange(len(effects_N)).split(len(batch.contrasts)):
        chosen = cells.select(index_N)
        effects_N[index_N] = clean_B[chosen.row_N] - _plain_diff_N(part, chosen)
    return effects_N, logit_spacing_B(logits, batch)


def _plain_diff_N(part: _Part, cells: Cells) -> Tensor:
    """The logit difference with the write of one cell replaced, by a whole forward pass for each cell."""
    batch, components = part.batch.select(cells.row_N.tolist()), len({*part.location.components})
    replaced = replaced_by_place(cells, part.window, components)
    places = [*replaced]

    def replace(index: int, output: Any) -> Any:
        index_N, there = replaced[places[index]]
        shape = batch.token_ids_BT.shape[0], batch.token_ids_BT.shape[1]
        return with_writes(output, shape, index_N, there.token_N, part.replacement_of(there))

    modules = [part.location.modules[place] for place in places]
    with outputs_changed(modules, replace), only_last_logits(part.model, batch):
        return difference_B(part.model(input_ids=batch.token_ids_BT, use_cache=False).logits, batch)


def _wanted_BLT(wanted_BLT: Tensor | None, location: Location, batch: ContrastBatch, window: int) -> Tensor:
    """The wanted cells, on the CPU, less those that are 0 for certain."""
    layers = len(location.layers)
    position_T = torch.arange(batch.token_ids_BT.shape[1])
    last_B1 = torch.tensor([[len(contrast.token_ids) - 1] for contrast in batch.contrasts])
    can_be_wanted_BLT = token_mask_BT(batch)[:, None].repeat(1, layers, 1)
    if window == 1:
        can_be_wanted_BLT[:, location.is_top_only_at_last_L] = (position_T == last_B1)[:, None]
    else:
        can_be_wanted_BLT[:, layers - (window - 1) * len({*location.components}) :] = False
    if wanted_BLT is None:
        return can_be_wanted_BLT
    if wanted_BLT.shape != can_be_wanted_BLT.shape or wanted_BLT.dtype != torch.bool:
        raise ArgumentError(
            "wanted_BLT",
            f"it is {wanted_BLT.dtype} of shape {list(wanted_BLT.shape)}; give booleans of shape "
            f"{list(can_be_wanted_BLT.shape)}, contrasts × layers × tokens",
        )
    return can_be_wanted_BLT & wanted_BLT.cpu()


def _as_cells(replacement_BLTH: Tensor | None, cells: torch.Size, device: torch.device) -> Tensor:
    """A replacement for each cell, [B, L, T, H], without a copy."""
    if replacement_BLTH is None:
        return torch.zeros((), device=device).expand(*cells, 1)
    if replacement_BLTH.dim() == 4 and replacement_BLTH.shape[:3] == cells:
        return replacement_BLTH
    rows, layers, tokens = cells
    raise ArgumentError(
        "replacement_BLTH",
        f"its shape {list(replacement_BLTH.shape)} is not {rows} contrasts × {layers} layers × {tokens} tokens × "
        "width",
    )
