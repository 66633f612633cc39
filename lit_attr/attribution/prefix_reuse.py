"""One clean run whose parts all cells of the exact effects share: earlier tokens and lower layers.

Axes: B contrasts, R those of them that reach the token in question (the first ones, as the longest come first), L
chosen layers, T tokens, H width of the residual stream.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from lit_attr.attribution.passes import difference_B, logit_spacing_B, only_last_logits
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import first_tensor, outputs_changed, replace_first
from lit_attr.models.location import Location

# How far two orders of the same sum may differ, in units of the number format's precision. In a model that does
# not support the reuse, the error is as large as the effects.
ROUNDING = 8


class _Prefix(DynamicLayer):
    """Keys and values of the tokens before those of a pass, for any number of versions of each row.

    The keys and values that the pass adds are kept apart in `added`.
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


class CleanRun(NamedTuple):
    """A run without any change, and the outputs of its blocks with one.

    Attributes:
        model: The model.
        blocks: The block of each chosen layer.
        batch: The contrasts, the longest first.
        diff_B: The logit difference.
        rounding: How far another order of summation may move it.
        spacing_B: The spacing of the number format at the larger of its two logits.
        layers: Keys and values of each layer, as `added`.
        outputs_LBTH: The hidden states after each chosen block.
        replaced_LBTH: Likewise, where at each token that token's write, and no other, is replaced.
    """

    model: PreTrainedModel
    blocks: list[nn.Module]
    batch: ContrastBatch
    diff_B: Tensor
    rounding: float
    spacing_B: Tensor
    layers: list[_Prefix]
    outputs_LBTH: list[Tensor]
    replaced_LBTH: list[Tensor]

    def effects_BL(self, token: int) -> Tensor:
        """The effects of all layers at one token, from one pass over the tokens from there on.

        The model is called with one row, so that the masks and positions that it makes for its blocks fit any
        number of rows. Each chosen block appends the rows with its own write replaced to those of lower blocks.
        """
        batch, count = self.batch, len(self.blocks)
        rows = int((batch.last_B >= token).sum())

        def grow(place: int, output: Any) -> Any:
            added_RTH = self.outputs_LBTH[place][:rows, token:].clone()
            added_RTH[:, 0] = self.replaced_LBTH[place][:rows, token]
            return replace_first(output, added_RTH if place == 0 else torch.cat([first_tensor(output), added_RTH]))

        before = [_Prefix(*(states[:rows, :, :token] for states in layer.added)) for layer in self.layers]
        last_R = batch.last_B[:rows] - token
        with outputs_changed(self.blocks, grow), only_last_logits(self.model, last_R.repeat(count)):
            logits = self.model(
                input_ids=batch.token_ids_BT[:1, token:], past_key_values=Cache(layers=[*before]), use_cache=True
            ).logits
        diffs_LR = difference_B(logits, batch.select(list(range(rows)) * count)).reshape(count, rows)
        effects_BL = self.diff_B.new_zeros(len(self.diff_B), count)
        effects_BL[:rows] = self.diff_B[:rows, None] - diffs_LR.T
        return effects_BL


def run_clean(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, replacement_BLTH: Tensor
) -> CleanRun:
    """Runs the model, and each chosen block twice more, with the writes at every second token replaced.

    The tokens in between must keep their outputs: a write may reach other tokens in later blocks only.

    Args:
        model: A causal language model, in eval mode.
        location: The modules whose outputs are replaced.
        batch: The contrasts, the longest first.
        replacement_BLTH: The replacement for each cell.

    Raises:
        ValueError: The model does not support the reuse.
    """
    blocks = _blocks(model, location)
    is_odd_T = torch.arange(batch.token_ids_BT.shape[1]) % 2 == 1
    replaced_T: list[Tensor] = []
    outputs_LBTH: list[Tensor] = []
    replaced_LBTH: list[Tensor] = []

    def replace(place: int, output: Any) -> Any:
        return with_writes(output, replaced_T[0], replacement_BLTH[:, place]) if replaced_T else output

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
            raise ValueError("a write changes the output of its own block at other tokens")
        outputs_LBTH.append(clean_BTH)
        replaced_LBTH.append(torch.where(is_odd_T1, odd_BTH, even_BTH))
        return replace_first(output, clean_BTH)

    cache = Cache(layer_class_to_replicate=_Prefix)
    with ExitStack() as hooks:
        hooks.enter_context(outputs_changed(location.modules, replace))
        for block in blocks:
            hooks.callback(block.register_forward_hook(run_again, with_kwargs=True).remove)
        hooks.enter_context(only_last_logits(model, batch.last_B))
        logits = model(input_ids=batch.token_ids_BT, past_key_values=cache, use_cache=True).logits
    rounding = 2 * ROUNDING * _precision(logits) * logits.abs().max().item()
    layers = cast(list[_Prefix], cache.layers)
    return CleanRun(
        model,
        blocks,
        batch,
        difference_B(logits, batch),
        rounding,
        logit_spacing_B(logits, batch),
        layers,
        outputs_LBTH,
        replaced_LBTH,
    )


def with_writes(output: Any, is_replaced_T: Tensor, replacement_BTH: Tensor) -> Any:
    """A module's output with the writes at some tokens replaced."""
    hidden = first_tensor(output)
    # Some modules have the tokens of all rows in one axis.
    write_BTH = hidden.reshape(*replacement_BTH.shape[:2], -1)
    replaced_BTH = torch.where(is_replaced_T[:, None].to(hidden.device), replacement_BTH.to(hidden), write_BTH)
    return replace_first(output, replaced_BTH.reshape(hidden.shape))


def _precision(tensor: Tensor) -> float:
    # Norms and softmaxes compute in float32 also in a float64 model.
    return max(torch.finfo(tensor.dtype).eps, torch.finfo(torch.float32).eps)


def _blocks(model: PreTrainedModel, location: Location) -> list[nn.Module]:
    """The decoder block that contains each module: its path up to the number of the layer."""
    blocks = []
    for layer, path in zip(location.layers, location.paths, strict=True):
        names = path.split(".")
        blocks.append(model.get_submodule(".".join(names[: names.index(str(layer)) + 1])))
    return blocks


def _refuse_unlike_rows(args: tuple[Any, ...], kwargs: dict[str, Any], shape: torch.Size) -> None:
    """Refuses a block with an input, besides the hidden states, that differs between rows."""
    for value in (*args[1:], *(value for name, value in kwargs.items() if name != "hidden_states")):
        if isinstance(value, Tensor) and value.shape[:2] == shape and (value != value[:1]).any():
            raise ValueError("a block has an input besides the hidden states that differs between rows")
