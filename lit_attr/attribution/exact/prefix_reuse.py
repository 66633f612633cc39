"""One clean run whose parts all cells of the exact effects share: earlier tokens and lower layers.

Axes: B contrasts, L chosen layers, T tokens, N cells, each a version of its row in a pass, H width of the residual
stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from lit_attr.attribution.exact.cells import Cells, replaced_by_place
from lit_attr.attribution.passes import (
    answer_difference_N,
    difference_B,
    logit_spacing_B,
    only_answer_logits,
    only_last_logits,
)
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import at_last_tokens, first_tensor, outputs_changed, replace_first
from lit_attr.models.location import Location

# How far two orders of the same sum may differ, in units of the number format's precision. In a model that does
# not support the reuse, the error is as large as the effects.
ROUNDING = 8


class _Prefix(DynamicLayer):
    """Keys and values of the tokens before those of a pass, for the versions that have reached the layer.

    Attributes:
        row_N: The row of each version, in the order in which the versions join the pass.
    """

    def __init__(self, clean: DynamicLayer, token: int, row_N: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.row_N = row_N
        if token and clean.keys is not None and clean.values is not None:
            self.keys, self.values = clean.keys[:, :, :token], clean.values[:, :, :token]
            self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            return key_states, value_states
        row_N = self.row_N[: len(key_states)].to(key_states.device)
        return torch.cat([self.keys[row_N], key_states], -2), torch.cat([self.values[row_N], value_states], -2)


class CleanRun(NamedTuple):
    """A run without any change.

    Attributes:
        model: The model.
        location: The modules whose outputs are replaced.
        batch: The contrasts.
        diff_B: The logit difference.
        rounding: How far another order of summation may move it.
        spacing_B: The spacing of the number format at the larger of its two logits.
        caches: Keys and values of each layer of the model.
        inputs_LBTH: The hidden states before the block of each chosen layer.
    """

    model: PreTrainedModel
    location: Location
    batch: ContrastBatch
    diff_B: Tensor
    rounding: float
    spacing_B: Tensor
    caches: list[DynamicLayer]
    inputs_LBTH: list[Tensor]

    def select(self, rows: Sequence[int], width: int) -> CleanRun:
        """The run of some of the rows, over fewer tokens.

        Args:
            rows: The rows.
            width: The number of tokens of the longest.
        """
        row_B = torch.tensor(rows, device=self.diff_B.device)

        def of_rows(values: Tensor, axis: int) -> Tensor:
            return values.index_select(0, row_B.to(values.device)).narrow(axis, 0, width)

        caches = []
        for clean in self.caches:
            layer = DynamicLayer()
            if clean.keys is not None and clean.values is not None:
                layer.keys, layer.values = of_rows(clean.keys, 2), of_rows(clean.values, 2)
            caches.append(layer)
        batch = self.batch.select(rows)
        return self._replace(
            batch=batch.narrowed(width),
            diff_B=self.diff_B[row_B],
            spacing_B=self.spacing_B[row_B],
            caches=caches,
            inputs_LBTH=[of_rows(hidden_BTH, 1) for hidden_BTH in self.inputs_LBTH],
        )

    def effects_N(self, cells: Cells, replacement_of: Callable[[Cells], Tensor], window: int = 1) -> Tensor:
        """The effects of cells at one token, from one pass over the tokens from there on.

        The model is called with one row, so that the masks and positions that it makes for its blocks fit any
        number of rows. Before each block, the rows whose write in it is replaced join the pass; the first to join
        take the place of the row that the model is called with.

        Args:
            cells: The cells, by layer.
            replacement_of: The replacements for cells, [N, H] or [N, 1].
            window: How many layers are replaced, each cell's own and those above it.
        """
        token, row_N = int(cells.token_N[0]), cells.row_N.to(self.diff_B.device)
        end = max(len(self.batch.contrasts[row].token_ids) for row in cells.row_N.unique().tolist())
        counts = cells.place_N.bincount(minlength=len(self.inputs_LBTH))
        bounds = [*pairwise([0, *counts.cumsum(0).tolist()])]

        def join(place: int, hidden_NTH: Tensor) -> Tensor:
            first, last = bounds[place]
            clean_BTH = self.inputs_LBTH[place]
            joining_NTH = clean_BTH[row_N[first:last].to(clean_BTH.device), token:end]
            return torch.cat([hidden_NTH, joining_NTH]) if first else joining_NTH

        components = len({*self.location.components})
        replaced = replaced_by_place(cells, window, components)

        def replace(place: int, output: Any) -> Any:
            index_N, there = replaced[place]
            # The rows of all components of a layer join before its block.
            rows = bounds[(place // components + 1) * components - 1][1]
            return with_writes(output, (rows, end - token), index_N, 0, replacement_of(there))

        batch = self.batch
        last_N = batch.last_B[row_N] - token
        ids_N2 = torch.stack([batch.true_token_ids_B, batch.false_token_ids_B], 1)[row_N]
        places = counts.nonzero()[:, 0].tolist()
        location, blocks = self.location, blocks_of(self.model, self.location)
        with ExitStack() as hooks:
            if location.top_mlp is not None:
                hooks.enter_context(at_last_tokens(location.top_mlp, last_N))
            hooks.enter_context(_inputs_changed({place: blocks[place] for place in places}, join))
            changed = [*replaced]
            modules = [location.modules[place] for place in changed]
            hooks.enter_context(outputs_changed(modules, lambda index, output: replace(changed[index], output)))
            hooks.enter_context(only_answer_logits(self.model, last_N, ids_N2))
            logits_N12 = self.model(
                input_ids=batch.token_ids_BT[:1, token:end],
                past_key_values=Cache(layers=[_Prefix(cache, token, row_N) for cache in self.caches]),
                use_cache=True,
            ).logits
        return self.diff_B[row_N] - answer_difference_N(logits_N12).to(self.diff_B)


def run_clean(model: PreTrainedModel, location: Location, batch: ContrastBatch) -> CleanRun:
    """Runs the model without any change.

    Args:
        model: A causal language model, in eval mode.
        location: The modules whose outputs are replaced.
        batch: The contrasts.

    Raises:
        ValueError: The model does not support the reuse.
    """
    with recorded_run(model, location, batch) as finished, only_last_logits(model, batch):
        model(input_ids=batch.token_ids_BT, use_cache=True)
    return finished()


@contextmanager
def recorded_run(
    model: PreTrainedModel, location: Location, batch: ContrastBatch
) -> Iterator[Callable[[], CleanRun]]:
    """Keeps of the one pass that is run within, over a batch, what exact effects can share.

    Args:
        model: A causal language model, in eval mode.
        location: The modules whose outputs are replaced.
        batch: The contrasts. Their pass returns the logits after the last tokens alone.

    Yields:
        A function that returns the clean run, once the pass is over. It raises ValueError where the model does not
        support the reuse.
    """
    inputs: dict[nn.Module, Tensor] = {}
    found: list[Tensor] = []
    problems: list[ValueError] = []
    cache = Cache(layer_class_to_replicate=DynamicLayer)

    def with_cache(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "past_key_values": cache, "use_cache": True}

    def keep_input(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            _refuse_unlike_rows(args, kwargs, batch.token_ids_BT.shape)
        except ValueError as problem:
            problems.append(problem)
        # A copy, since some blocks add to it in place.
        inputs[block] = (args[0] if args else kwargs["hidden_states"]).detach().clone()

    def keep_logits(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output.logits.detach())

    def finished() -> CleanRun:
        if problems:
            raise problems[0]
        (logits,) = found
        caches = cast(list[DynamicLayer], cache.layers)
        for layer in caches:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        rounding = 2 * ROUNDING * _precision(logits) * logits.abs().max().item()
        # A model spread over several devices has its logits on another one than its input.
        device = batch.last_B.device
        diff_B, spacing_B = difference_B(logits, batch).to(device), logit_spacing_B(logits, batch).to(device)
        # Several components share the input of a block.
        inputs_LBTH = [inputs[block] for block in blocks]
        return CleanRun(model, location, batch, diff_B, rounding, spacing_B, caches, inputs_LBTH)

    blocks = blocks_of(model, location)
    with ExitStack() as hooks:
        for block in dict.fromkeys(blocks):
            hooks.callback(block.register_forward_pre_hook(keep_input, with_kwargs=True).remove)
        hooks.callback(model.register_forward_pre_hook(with_cache, with_kwargs=True).remove)
        hooks.callback(model.register_forward_hook(keep_logits).remove)
        yield finished


def with_writes(
    output: Any,
    shape: tuple[int, int],
    rows: Tensor,
    tokens: Tensor | int,
    replacement_NH: Tensor,
) -> Any:
    """A module's output with N of its writes replaced.

    Args:
        output: The output.
        shape: Its numbers of rows and tokens; some modules have the tokens of all rows in one axis.
        rows: The rows of the writes.
        tokens: Their tokens.
        replacement_NH: Their replacements; of width 1 where all numbers of a write are the same.
    """
    hidden = first_tensor(output)
    writes_BTH = hidden.reshape(*shape, -1).clone()
    writes_BTH[rows, tokens] = replacement_NH.to(writes_BTH)
    return replace_first(output, writes_BTH.reshape(hidden.shape))


def blocks_of(model: PreTrainedModel, location: Location) -> list[nn.Module]:
    """The decoder block that contains each module: its path up to the number of the layer."""
    blocks = []
    for layer, path in zip(location.layers, location.paths, strict=True):
        names = path.split(".")
        blocks.append(model.get_submodule(".".join(names[: names.index(str(layer)) + 1])))
    return blocks


@contextmanager
def _inputs_changed(modules: Mapping[int, nn.Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Replaces each module's hidden states by `change(place, hidden_states)`."""

    def changed(
        place: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(place, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(place, kwargs["hidden_states"])}

    with ExitStack() as hooks:
        for place, module in modules.items():
            handle = module.register_forward_pre_hook(
                lambda _, args, kwargs, place=place: changed(place, args, kwargs), with_kwargs=True
            )
            hooks.callback(handle.remove)
        yield


def _precision(tensor: Tensor) -> float:
    # Norms and softmaxes compute in float32 also in a float64 model.
    return max(torch.finfo(tensor.dtype).eps, torch.finfo(torch.float32).eps)


def _refuse_unlike_rows(args: tuple[Any, ...], kwargs: dict[str, Any], shape: torch.Size) -> None:
    """Refuses a block with an input, besides the hidden states, that differs between rows."""
    for value in (*args[1:], *(value for name, value in kwargs.items() if name != "hidden_states")):
        if isinstance(value, Tensor) and value.shape[:2] == shape and (value != value[:1]).any():
            raise ValueError("a block has an input besides the hidden states that differs between rows")
