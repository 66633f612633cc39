"""Exact effects: what the logit difference loses when one component's write at one token is replaced.

Gradient × activation is their first-order estimate. Pure torch. Axes: B contrasts, R those of them that reach the
token in question (the first ones, as the longest come first), L chosen layers, T tokens (padded on the right),
H width of the component's output, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from lit_attr.attribution.gradient import (
    AttributionBatch,
    answers_of,
    check_inputs,
    difference_B,
    last_logits_BV,
    only_last_logits,
)
from lit_attr.errors import UserError
from lit_attr.facts.contrasts import ContrastBatch
from lit_attr.models.hooks import first_tensor, outputs_changed, replace_first, undisturbed
from lit_attr.models.loading import warn_once
from lit_attr.models.location import Location

# What two ways of adding up the same numbers may differ by, in units of the number format's precision: what goes
# wrong in a model that does not suit the fast way is as large as the effects.
ROUNDING = 8


@torch.inference_mode(False)
@torch.no_grad()
def exact_effects_BLT(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    replacement: Tensor | None = None,
    *,
    max_tokens: int = 8192,
) -> Tensor:
    """How much of the logit difference goes when one layer's write at one token is replaced, for every such cell.

    `effect[l, t] = diff − diff with a[l, t, :] replaced`, where `a` is the component's write, `diff` is
    logit_true − logit_false after the last token, and the model above and after the cell answers to the change:
    zero, mean or resample ablation, or (with a donor of another prompt) activation patching, the causal tracing
    of Meng et al. (2022, arXiv:2202.05262) for one state.

    Tokens before t and layers below l are taken from one run without any change, so that all layers of a token
    come from one pass over the tokens from t on, to which each layer adds its rows. That costs about a quarter of
    a forward for each cell. One cell of each row is compared with a plain forward; where it differs, the model
    does not suit this way and every cell takes a plain forward.

    Args:
        model: A causal language model.
        location: The modules whose outputs `a` are replaced.
        batch: The contrasts, on the device of the model's embeddings.
        replacement: Zeros where None; a vector for each layer, [L, H], such as the mean write; or a donor's write
            for each cell, [B, L, T, H].
        max_tokens: Bounds memory: rows × tokens that go through a layer together. A contrast's own layers are
            never parted.

    Returns:
        float32 in logits, axes contrast × layer (as `location.layers`) × token. Padding is 0.

    Raises:
        UserError: A token id has no embedding in the model, the context is longer than its positions, or the
            replacement has another shape.
    """
    check_inputs(model, batch)
    layers = len(location.layers)
    effects_BLT = torch.zeros(len(batch.contrasts), layers, batch.token_ids_BT.shape[1])
    replacement_BLTH = _as_cells(replacement, effects_BLT.shape)
    # The longest first: the rows that reach a token are then always the first ones.
    order = batch.last_B.argsort(descending=True, stable=True).tolist()
    with undisturbed(model, batch.token_ids_BT.device):
        while order:
            width = int(batch.last_B[order[0]]) + 1
            count = max(1, max_tokens // (layers * width))
            rows, order = order[:count], order[count:]
            part = batch.select(rows)
            part = part._replace(token_ids_BT=part.token_ids_BT[:, :width])
            effects = _effects_BLT(model, location, part, replacement_BLTH[rows, :, :width])
            effects_BLT[rows, :, :width] = effects.to(effects_BLT)
    return effects_BLT.where(_is_token_BT(batch)[:, None], 0).to(batch.token_ids_BT.device)


@torch.inference_mode(False)
@torch.no_grad()
def ablate_batch(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, *, component: str = "mlp"
) -> AttributionBatch:
    """Exact effects of zero ablation in the place of scores: the rule `exact`.

    Args:
        model: A causal language model.
        location: The modules whose outputs are replaced.
        batch: The contrasts, on the device of the model's embeddings.
        component: What `location` was found for; passed on into the result.

    Raises:
        UserError: As `exact_effects_BLT`.
    """
    effects_BLT = exact_effects_BLT(model, location, batch)
    with undisturbed(model, batch.token_ids_BT.device), only_last_logits(model, batch.last_B):
        answers = answers_of(last_logits_BV(model, batch), batch)
    return AttributionBatch(batch.contrasts, location.layers, component, "exact", effects_BLT, None, *answers)


@torch.inference_mode(False)
@torch.no_grad()
def mean_writes_LH(model: PreTrainedModel, location: Location, batches: Iterable[ContrastBatch]) -> Tensor:
    """The mean over all tokens of many contrasts of what each layer writes, to replace a write by.

    Args:
        model: A causal language model.
        location: The modules whose outputs are averaged.
        batches: The contrasts; padding is left out. Each token of each contrast counts the same.

    Returns:
        float32, axes layer (as `location.layers`) × width of the output.

    Raises:
        UserError: There is no contrast, a token id has no embedding, or a context is longer than the positions.
    """
    total_LH, tokens = torch.zeros(()), 0
    for batch in batches:
        # In float64: the sum is over all tokens of a data set.
        writes_LNH = [write_NH.cpu().double() for write_NH in _writes_NH(model, location, batch)]
        total_LH = total_LH + torch.stack([write_NH.sum(0) for write_NH in writes_LNH])
        tokens += len(writes_LNH[0])
    if not tokens:
        raise UserError("data.source: there is no contrast to take the mean write of")
    return (total_LH / tokens).float()


def _writes_NH(model: PreTrainedModel, location: Location, batch: ContrastBatch) -> list[Tensor]:
    """What each layer writes at the N tokens of a batch, its padding left out."""
    check_inputs(model, batch)
    is_token_BT = _is_token_BT(batch)
    writes: dict[int, Tensor] = {}

    def keep(place: int, output: Any) -> None:
        writes[place] = first_tensor(output).reshape(*is_token_BT.shape, -1)[is_token_BT]

    with (
        undisturbed(model, batch.token_ids_BT.device),
        outputs_changed(location.modules, keep),
        only_last_logits(model, batch.last_B),
    ):
        model(input_ids=batch.token_ids_BT, use_cache=False)
    return [writes[place] for place in range(len(location.modules))]


class _Prefix(DynamicLayer):
    """Keys and values of the tokens before those of a pass, which may go through the layer in several versions.

    What the pass adds is handed on with them, and kept apart.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self.is_initialized = keys is not None
        self.added: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.added = [key_states, value_states]
        if self.keys is None or self.values is None:
            return key_states, value_states
        rows = torch.arange(len(key_states), device=key_states.device) % len(self.keys)
        return torch.cat([self.keys[rows], key_states], -2), torch.cat([self.values[rows], value_states], -2)


class _Clean(NamedTuple):
    """A run without any change, and what its blocks would have given out with one.

    Attributes:
        diff_B: The logit difference.
        rounding: What another way of adding up may change in it.
        layers: Each layer's keys and values, as `added`.
        outputs_LBTH: The hidden states after each chosen block.
        replaced_LBTH: Likewise, where at each token that token's write is replaced, and no other's.
    """

    diff_B: Tensor
    rounding: float
    layers: list[_Prefix]
    outputs_LBTH: list[Tensor]
    replaced_LBTH: list[Tensor]


def _effects_BLT(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, replacement_BLTH: Tensor
) -> Tensor:
    tokens = range(batch.token_ids_BT.shape[1])
    middle = len(tokens) // 2
    try:
        blocks = _blocks(model, location)
        clean = _clean_run(model, blocks, location.modules, batch, replacement_BLTH)
        effects_BL = _effects_from(model, blocks, clean, batch, middle)
        plain_B = clean.diff_B - _plain_diff_B(model, location.modules[0], batch, replacement_BLTH[:, 0], middle)
        if not (effects_BL[:, 0] - plain_B).abs().max() <= clean.rounding:
            raise ValueError("the effects come out differently")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what is wrong with the model itself comes up again in a whole forward
        if "allocate memory" in str(error):  # a CPU's memory has no error of its own
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        warn_once(
            "model: exact effects take a whole forward for every layer and token, several times as long, since "
            f"this model's layers cannot be run for many prompts from the middle on ({reason})"
        )
        return _plain_effects_BLT(model, location, batch, replacement_BLTH)
    return torch.stack(
        [effects_BL if token == middle else _effects_from(model, blocks, clean, batch, token) for token in tokens],
        2,
    )


def _clean_run(
    model: PreTrainedModel,
    blocks: list[nn.Module],
    modules: tuple[nn.Module, ...],
    batch: ContrastBatch,
    replacement_BLTH: Tensor,
) -> _Clean:
    """Runs the model, and each chosen block twice more, with the writes at every second token replaced.

    The tokens in between must come out as they are: what a write does to others, it must do in later blocks.
    """
    is_odd_T = torch.arange(batch.token_ids_BT.shape[1]) % 2 == 1
    replaced_T: list[Tensor] = []
    outputs_LBTH: list[Tensor] = []
    replaced_LBTH: list[Tensor] = []

    def replace(place: int, output: Any) -> Any:
        return _with_writes(output, replaced_T[0], replacement_BLTH[:, place]) if replaced_T else output

    def run_again(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if replaced_T:
            return output
        clean_BTH = first_tensor(output).clone()
        _refuse_unlike_rows(args, kwargs, batch.token_ids_BT.shape)
        versions_BTH = []
        for is_replaced_T in (~is_odd_T, is_odd_T):
            replaced_T.append(is_replaced_T)
            try:
                versions_BTH.append(first_tensor(block(*args, **kwargs)))
            finally:
                replaced_T.clear()
        even_BTH, odd_BTH = versions_BTH
        is_odd_T1 = is_odd_T[:, None].to(clean_BTH.device)
        rounding_H = ROUNDING * _precision(clean_BTH) * clean_BTH.abs().amax((0, 1))
        if ((torch.where(is_odd_T1, even_BTH, odd_BTH) - clean_BTH).abs() > rounding_H).any():
            raise ValueError("a write changes what its own block gives out at other tokens")
        outputs_LBTH.append(clean_BTH)
        replaced_LBTH.append(torch.where(is_odd_T1, odd_BTH, even_BTH))
        return replace_first(output, clean_BTH)

    cache = Cache(layer_class_to_replicate=_Prefix)
    with ExitStack() as hooks:
        hooks.enter_context(outputs_changed(modules, replace))
        for block in blocks:
            hooks.callback(block.register_forward_hook(run_again, with_kwargs=True).remove)
        hooks.enter_context(only_last_logits(model, batch.last_B))
        logits = model(input_ids=batch.token_ids_BT, past_key_values=cache, use_cache=True).logits
    rounding = 2 * ROUNDING * _precision(logits) * logits.abs().max().item()
    return _Clean(
        difference_B(logits, batch), rounding, cast(list[_Prefix], cache.layers), outputs_LBTH, replaced_LBTH
    )


def _effects_from(
    model: PreTrainedModel, blocks: list[nn.Module], clean: _Clean, batch: ContrastBatch, token: int
) -> Tensor:
    """The effects of all layers at one token, [B, L], from one pass over the tokens from there on.

    The model is called with one row, so that all it makes for its blocks (masks, positions) fits any number of
    rows. Each chosen block puts the rows with its own write replaced under those of the blocks below.
    """
    rows = int((batch.last_B >= token).sum())

    def grow(place: int, output: Any) -> Any:
        added_RTH = clean.outputs_LBTH[place][:rows, token:].clone()
        added_RTH[:, 0] = clean.replaced_LBTH[place][:rows, token]
        return replace_first(output, added_RTH if place == 0 else torch.cat([first_tensor(output), added_RTH]))

    before = [_Prefix(*(states[:rows, :, :token] for states in layer.added)) for layer in clean.layers]
    with outputs_changed(blocks, grow), only_last_logits(model, (batch.last_B[:rows] - token).repeat(len(blocks))):
        logits = model(
            input_ids=batch.token_ids_BT[:1, token:], past_key_values=Cache(layers=[*before]), use_cache=True
        ).logits
    diffs_LR = difference_B(logits, batch.select(list(range(rows)) * len(blocks))).reshape(len(blocks), rows)
    effects_BL = clean.diff_B.new_zeros(len(clean.diff_B), len(blocks))
    effects_BL[:rows] = clean.diff_B[:rows, None] - diffs_LR.T
    return effects_BL


def _plain_effects_BLT(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, replacement_BLTH: Tensor
) -> Tensor:
    with only_last_logits(model, batch.last_B):
        clean_B = difference_B(model(input_ids=batch.token_ids_BT, use_cache=False).logits, batch)
    effects_LTB = [
        torch.stack(
            [
                clean_B - _plain_diff_B(model, module, batch, replacement_BLTH[:, place], token)
                for token in range(batch.token_ids_BT.shape[1])
            ]
        )
        for place, module in enumerate(location.modules)
    ]
    return torch.stack(effects_LTB).permute(2, 0, 1)


def _plain_diff_B(
    model: PreTrainedModel, module: nn.Module, batch: ContrastBatch, replacement_BTH: Tensor, token: int
) -> Tensor:
    """The logit difference of a whole forward with one write replaced."""
    is_replaced_T = torch.arange(batch.token_ids_BT.shape[1]) == token
    with (
        outputs_changed([module], lambda _, output: _with_writes(output, is_replaced_T, replacement_BTH)),
        only_last_logits(model, batch.last_B),
    ):
        return difference_B(model(input_ids=batch.token_ids_BT, use_cache=False).logits, batch)


def _precision(tensor: Tensor) -> float:
    # Norms and softmaxes go through float32 also in a float64 model.
    return max(torch.finfo(tensor.dtype).eps, torch.finfo(torch.float32).eps)


def _with_writes(output: Any, is_replaced_T: Tensor, replacement_BTH: Tensor) -> Any:
    """A module's output with the writes at some tokens replaced."""
    hidden = first_tensor(output)
    # Some modules take the tokens of all rows in one axis.
    write_BTH = hidden.reshape(*replacement_BTH.shape[:2], -1)
    replaced_BTH = torch.where(is_replaced_T[:, None].to(hidden.device), replacement_BTH.to(hidden), write_BTH)
    return replace_first(output, replaced_BTH.reshape(hidden.shape))


def _as_cells(replacement: Tensor | None, cells: torch.Size) -> Tensor:
    """A replacement for each cell, [B, L, T, H], without a copy."""
    rows, layers, tokens = cells
    if replacement is None:
        return torch.zeros(()).expand(*cells, 1)
    if replacement.dim() == 2 and len(replacement) == layers:
        return replacement[None, :, None].expand(rows, -1, tokens, -1)
    if replacement.dim() == 4 and replacement.shape[:3] == cells:
        return replacement
    raise UserError(
        f"replacement: its shape {list(replacement.shape)} is neither {layers} layers × width nor "
        f"{rows} contrasts × {layers} layers × {tokens} tokens × width"
    )


def _is_token_BT(batch: ContrastBatch) -> Tensor:
    """On the CPU, from where it can index whatever device a layer is on."""
    return torch.arange(batch.token_ids_BT.shape[1]) <= batch.last_B.cpu()[:, None]


def _blocks(model: PreTrainedModel, location: Location) -> list[nn.Module]:
    """The decoder block that each module lies in: its path as far as the layer's number."""
    blocks = []
    for layer, path in zip(location.layers, location.paths, strict=True):
        names = path.split(".")
        blocks.append(model.get_submodule(".".join(names[: names.index(str(layer)) + 1])))
    return blocks


def _refuse_unlike_rows(args: tuple[Any, ...], kwargs: dict[str, Any], shape: torch.Size) -> None:
    """Refuses a block that is given more of each row than its hidden states, which come first or by name."""
    for value in (*args[1:], *(value for name, value in kwargs.items() if name != "hidden_states")):
        if isinstance(value, Tensor) and value.shape[:2] == shape and (value != value[:1]).any():
            raise ValueError("a block is given more of each row than its hidden states")
