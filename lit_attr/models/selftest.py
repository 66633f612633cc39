"""The self-test of a model: whether a module's output is what its block adds to the residual stream.

Axes: B rows and T tokens of the short input, H width of the residual stream.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_attr.errors import UserError
from lit_attr.models.hooks import at_last_tokens, first_tensor, replace_first
from lit_attr.models.limits import ModelLimits

ROWS, TOKENS = 2, 5
# The size of test outputs relative to everything else in the block, which would hide smaller ones.
LARGE = 64.0


class BlockCall(NamedTuple):
    """A decoder block with the arguments of one call, to run it again on other inputs.

    Attributes:
        block: The block.
        args: Its positional arguments, without the hidden states.
        kwargs: Its keyword arguments, without the hidden states.
        hidden_BTH: The hidden states of the call.
        writers: The modules in it whose output has as many numbers as the block's, in the order in which they
            finished.
    """

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_BTH: Tensor
    writers: list[nn.Module]

    def output_BTH(self, hidden_BTH: Tensor, writes: Mapping[nn.Module, Tensor | None]) -> Tensor:
        """The block's output for other hidden states, with the outputs of some of its modules replaced.

        Args:
            hidden_BTH: The hidden states.
            writes: The output of each of these modules; zeros where None.
        """

        def write(module: nn.Module, _: Any, output: Any) -> Any:
            # A new tensor, since some blocks add the residual in place.
            written = torch.zeros_like(first_tensor(output))
            if (wanted := writes[module]) is not None:
                written.copy_(wanted.reshape(written.shape))
            return replace_first(output, written)

        with ExitStack() as hooks:
            for module in writes:
                hooks.callback(module.register_forward_hook(write).remove)
            return first_tensor(self.block(hidden_BTH.clone(), *self.args, **self.kwargs))


class Recording(NamedTuple):
    """One run of a model over the short input.

    Attributes:
        calls: The calls of the decoder blocks, in the order in which they ran.
        shapes: The shapes of each module's outputs, one for each time it ran.
        looks_ahead: Whether a later token changes the logits after an earlier one.
        logits_BTV: The logits.
    """

    calls: tuple[BlockCall, ...]
    shapes: dict[nn.Module, list[tuple[int, ...]]]
    looks_ahead: bool
    logits_BTV: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether all logits that are followed by another token are finite."""
        return bool(self.logits_BTV[:, :-1].isfinite().all())


@torch.inference_mode(False)
@torch.enable_grad()
def record(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> Recording:
    """Runs a model over a short input, forward and backward, and records the calls of its decoder blocks.

    Args:
        model: A causal language model, in eval mode and without gradients for its parameters.
        blocks: The blocks whose calls are recorded.

    Raises:
        UserError: No gradient passes through a module.
    """
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    calls: list[BlockCall] = []
    finished: list[tuple[nn.Module, int]] = []
    shapes: dict[nn.Module, list[tuple[int, ...]]] = {}
    embedded: list[Tensor] = []

    def start_tape(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0].clone()  # some models scale it in place

    def start_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        finished.clear()
        kept = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        hidden_BTH = (args or (kwargs["hidden_states"],))[0].detach().clone()
        calls.append(BlockCall(block, args[1:], kept, hidden_BTH, []))

    def end_module(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(hidden := first_tensor(output), Tensor) and hidden.is_floating_point():
            finished.append((module, hidden.numel()))
            shapes.setdefault(module, []).append(tuple(hidden.shape))

    def end_block(_: nn.Module, __: Any, output: Any) -> None:
        calls[-1].writers.extend(module for module, size in finished if size == first_tensor(output).numel())

    with ExitStack() as hooks:
        passages = hooks.enter_context(watched_gradients(model))
        hooks.callback(embedding.register_forward_hook(start_tape).remove)
        for module in model.modules():
            hooks.callback(module.register_forward_hook(end_module).remove)
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(start_block, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(end_block).remove)
        logits_BTV = model(input_ids=short_input_BT(model), use_cache=False).logits[:, -TOKENS:]
        earlier_BTV = logits_BTV[:, :-1]
        gradient_BTH: Tensor | None = None
        if earlier_BTV.requires_grad:
            # Masked positions have a gradient of exactly zero in every number format. NaN proves nothing.
            total = (earlier_BTV * noise(earlier_BTV)).sum()
            (gradient_BTH,) = torch.autograd.grad(total, embedded, allow_unused=True)
    ending = [passage.module for passage in passages if passage.ends]
    # Beside a part of a block gradients pass, but scores would lack what goes through it.
    writers = {writer for call in calls for writer in call.writers} & {*ending}
    for module in ending:
        if gradient_BTH is None or any(module in {*writer.modules()} for writer in writers):
            raise without_gradient(model, module)
    if gradient_BTH is None:
        raise UserError("no gradient of the logits comes to the embedding; load the model in another format")
    looks_ahead = bool(gradient_BTH[:, -1].nan_to_num().any())
    return Recording(tuple(calls), shapes, looks_ahead, logits_BTV.detach())


class Passage:
    """One run of a module in a pass whose gradients are watched.

    Attributes:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._asked = self._left = self._arrived = False

    @property
    def ends(self) -> bool:
        """Whether a gradient came to the output, or the output can have none, and none came to the inputs."""
        return self._asked and self._left and not self._arrived

    def enter(self, value: Any) -> Any:
        """The module's own copy of an input: a gradient that comes to it has passed through the module."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        self._asked, copied = True, value.clone()
        copied.register_hook(partial(self._mark, "_arrived"))
        return copied

    def leave(self, output: Any) -> None:
        """Takes note of the module's output."""
        hidden = first_tensor(output)
        if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
            return
        if hidden.requires_grad:
            hidden.register_hook(partial(self._mark, "_left"))
        # Rotary embeddings take the hidden states for their device and number format alone.
        elif "rotary" not in type(self.module).__name__.lower():
            self._left = True

    def _mark(self, name: str, gradient: Tensor | None) -> None:
        # Operations without a backward pass on nothing.
        if gradient is not None:
            vars(self)[name] = True


@contextmanager
def watched_gradients(model: nn.Module) -> Iterator[list[Passage]]:
    """Watches through which modules gradients pass in a forward and backward pass, the first to finish first."""
    passages: list[Passage] = []
    running: list[Passage] = []

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        running.append(Passage(module))
        enter = running[-1].enter
        return tuple(map(enter, args)), {name: enter(value) for name, value in kwargs.items()}

    def end(_: nn.Module, __: Any, output: Any) -> None:
        passages.append(running.pop())
        passages[-1].leave(output)

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(end).remove)
        yield passages


def without_gradient(model: nn.Module, module: nn.Module) -> UserError:
    """The error for a module that no gradient passes through."""
    names = {each: name for name, each in model.named_modules()}
    return UserError(
        f"{names[module]} ({type(module).__name__}): no gradient passes through it, so scores would lack what it "
        "computes; load the model in a format that has gradients, such as dtype bfloat16 or quantization 8bit"
    )


@torch.no_grad()
def is_added(call: BlockCall, module: nn.Module, silent: Sequence[nn.Module]) -> bool:
    """Whether a module's output is what is added to the residual stream, up to a constant factor.

    Two checks establish that. Replacing the module's output must change the block's output by exactly the
    difference, whatever the size of its rows; it would not if a norm came after it. With a zero output the block
    must still pass on its own input; it would not if the module added the residual itself. A constant factor does
    not change gradient × activation.

    Args:
        call: The block's call.
        module: A module of the block.
        silent: Modules set to zero meanwhile, since they depend on what this one writes.
    """
    nothing: dict[nn.Module, Tensor | None] = dict.fromkeys([*silent, module])
    hidden_BTH = call.hidden_BTH / call.hidden_BTH.abs().max()
    without_BTH = call.output_BTH(hidden_BTH, nothing)
    size = without_BTH.abs().max().clamp(min=1)
    larger_BTH = LARGE * size * hidden_BTH
    handed_on_BTH = call.output_BTH(larger_BTH, nothing)
    if not (handed_on_BTH - larger_BTH).abs().max() < 0.5 * larger_BTH.abs().max():
        return False
    noise_BTH = noise(without_BTH) * torch.arange(1, 1 + without_BTH.shape[-2]).to(without_BTH)[:, None]
    for scale in (LARGE, 1.0):
        probe_BTH = noise_BTH * (scale * size / noise_BTH.abs().max())
        change_BTH = call.output_BTH(hidden_BTH, {**nothing, module: probe_BTH}) - without_BTH
        change_BTH, probe_BTH = change_BTH.cpu().double(), probe_BTH.cpu().double()
        factor = (change_BTH * probe_BTH).sum() / probe_BTH.square().sum()
        rounding = 8 * torch.finfo(without_BTH.dtype).eps * (factor.abs() * scale + 1) * size.cpu()
        if factor.abs() * LARGE < 1 or (change_BTH - factor * probe_BTH).abs().max() > rounding:
            return False
    return True


@torch.no_grad()
def are_all(call: BlockCall, modules: Sequence[nn.Module]) -> bool:
    """Whether a block writes nothing but these modules' outputs: without them it returns its input."""
    output_BTH = call.output_BTH(call.hidden_BTH, dict.fromkeys(modules))
    rounding = 8 * torch.finfo(output_BTH.dtype).eps
    return bool((output_BTH - call.hidden_BTH).abs().max() <= rounding * call.hidden_BTH.abs().max())


@torch.no_grad()
def is_needed_last_only(model: PreTrainedModel, module: nn.Module, logits_BTV: Tensor) -> bool:
    """Whether running a module of the last block at the last token alone keeps the logits after that token.

    Args:
        model: A causal language model, in eval mode.
        module: The module.
        logits_BTV: The recorded logits of the short input.
    """
    ids_BT = short_input_BT(model)
    with at_last_tokens(module, torch.full((ROWS,), TOKENS - 1)):
        try:
            found_BV = model(input_ids=ids_BT, use_cache=False).logits[:, -1]
        except (IndexError, RuntimeError, TypeError):  # it needs all tokens
            return False
    recorded_BV = logits_BTV[:, -1]
    if (found_BV - recorded_BV).abs().max() <= _rounding(recorded_BV):
        return True
    # The recorded pass has gradients, and with them a device may use another kernel for attention.
    expected_BV = model(input_ids=ids_BT, use_cache=False).logits[:, -1]
    return bool((found_BV - expected_BV).abs().max() <= _rounding(expected_BV))


@torch.no_grad()
def shows_other_widths(model: PreTrainedModel, limits: ModelLimits, logits_BTV: Tensor) -> bool:
    """Whether the logits depend on the width of a batch otherwise than the limits say.

    A few tokens are enough: the position of the last one is the width, as rotary embeddings see it, and causal
    attention keeps the logits of the others as they are. Of each class of widths, the lowest and the largest are
    compared; the short input stands for the lowest.

    Args:
        model: A causal language model, in eval mode.
        limits: The limits that its config states.
        logits_BTV: The recorded logits of the short input.
    """
    # PEFT's wrapper passes everything on.
    wrapped: Any = model
    base = wrapped.get_base_model() if hasattr(model, "active_peft_config") else model
    if limits.positions is None or "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    ids_BT = short_input_BT(model)

    def earlier_BTV(width: int) -> Tensor:
        positions_T = torch.tensor([*range(TOKENS - 1), width - 1], device=ids_BT.device)
        given = {"input_ids": ids_BT, "position_ids": positions_T.expand(ROWS, -1), "use_cache": False}
        found_BTV: Tensor = model(**given).logits[:, :-1]
        return found_BTV

    ends = [*limits.switches, *([limits.positions] if limits.own_beyond is None else [])]
    # The lowest width has a gap before its last token, as all others do: masks may tell texts apart by gaps.
    starts = [TOKENS + 1, *(switch + 1 for switch in limits.switches)]
    for start, end in zip(starts, ends, strict=False):
        if not TOKENS < start < end:
            continue
        try:
            largest_BTV = earlier_BTV(end)
            # For most models neither width nor gap matters, and this pass is enough.
            if not _differ(largest_BTV, logits_BTV[:, :-1]):
                continue
            lowest_BTV = earlier_BTV(start)
        except Exception:  # a model may take no positions, or no others than it counts itself
            return False
        if _differ(largest_BTV, lowest_BTV):
            return True
    return False


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Whether logits differ by more than rounding. NaN proves nothing."""
    return bool((found - expected).abs().nan_to_num().max() > _rounding(expected))


def _rounding(logits: Tensor) -> Tensor:
    return 8 * torch.finfo(logits.dtype).eps * logits.abs().nan_to_num().max()


def short_input_BT(model: PreTrainedModel) -> Tensor:
    """The token ids of the short input."""
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    device = embedding.weight.device if not embedding.weight.is_meta else None
    return torch.arange(1, 1 + ROWS * TOKENS, device=device).reshape(ROWS, TOKENS) % len(embedding.weight)


def noise(like: Tensor) -> Tensor:
    """Reproducible random numbers in the shape and format of a tensor, on its device."""
    # An unusual seed, so that the numbers are not a model's own random weights.
    generator = torch.Generator().manual_seed(8_675_309)
    return torch.randn(like.shape, generator=generator, device="cpu").to(like)
