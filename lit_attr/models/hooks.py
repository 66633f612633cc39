"""Temporary changes to a model: hooks, modes and replaced functions, undone also after an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Model = TypeVar("Model", bound=nn.Module)

# In eval mode, on CPUs with bfloat16 instructions, bitsandbytes packs 4-bit weights for a kernel without backward.
NO_GRADIENT_IN_EVAL_MODE = ("Linear4bit",)
# The same function up to rounding, written out in six to eight elementwise operations.
TANH_GELUS = (AccurateGELUActivation, FastGELUActivation, NewGELUActivation)


@contextmanager
def undisturbed(model: Model, device: torch.device) -> Iterator[Model]:
    """Runs a model in eval mode, uncompiled, with fused GELUs and without a Trainer's autocast.

    Args:
        model: The model.
        device: The device of its input.

    Yields:
        The model to run, see `uncompiled`.
    """
    with ExitStack() as stack:
        devices = (device, *(parameter.device for parameter in model.parameters()))
        for device_type in {device.type for device in devices} - {"meta"}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        model = stack.enter_context(uncompiled(model))
        stack.enter_context(evaluating(model))
        stack.enter_context(fresh_rotary_frequencies(model))
        stack.enter_context(fused_gelus(model))
        yield model


@contextmanager
def uncompiled(model: Model) -> Iterator[Model]:
    """Runs a model without what torch.compile has made of it or of its modules.

    Compiled code ignores hooks that come later, and its wrappers put names of their own into paths. What was
    compiled is put back as it was.

    Args:
        model: The model.

    Yields:
        The model without wrappers. The model itself where it is none.
    """
    with ExitStack() as stack:
        while _is_compiled_wrapper(model):
            model = cast(Model, model._modules["_orig_mod"])
        for module in [*model.modules()]:
            for name, child in module._modules.items():
                inner = child
                while inner is not None and _is_compiled_wrapper(inner):
                    inner = inner._modules["_orig_mod"]
                if inner is not child:
                    module._modules[name] = inner
                    stack.callback(module._modules.__setitem__, name, child)
            # What `module.compile()` keeps.
            if (compiled := vars(module).get("_compiled_call_impl")) is not None:
                vars(module)["_compiled_call_impl"] = None
                stack.callback(vars(module).__setitem__, "_compiled_call_impl", compiled)
            # What `module.forward = torch.compile(module.forward)` has replaced.
            original = getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
            if original is not None:
                stack.enter_context(calling(module, original))
        yield model


def _is_compiled_wrapper(module: nn.Module) -> bool:
    # By name: to import the class would take seconds where nothing is compiled.
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


@contextmanager
def fresh_rotary_frequencies(model: nn.Module) -> Iterator[None]:
    """Lets the width of each pass alone decide the rotary frequencies of a model whose frequencies depend on it.

    Those of transformers' dynamic types stay as a longer pass has left them. Afterwards they are as before.
    """
    with ExitStack() as stack:
        for module in model.modules():
            types = vars(module).get("rope_type")
            prefixes = (
                {f"{key}_": value for key, value in types.items()} if isinstance(types, dict) else {"": types}
            )
            if not any(isinstance(each, str) and each in ROPE_INIT_FUNCTIONS for each in prefixes.values()):
                continue
            stack.callback(_put_back, module, dict(vars(module)), dict(module._buffers))
            # Some types are written in place.
            module._buffers.update(
                {name: each.clone() for name, each in module._buffers.items() if each is not None}
            )
            dynamic = [prefix for prefix, value in prefixes.items() if "dynamic" in str(value)]
            if dynamic:
                stack.callback(module.register_forward_pre_hook(partial(_reset, dynamic)).remove)
        yield


def _reset(prefixes: Sequence[str], module: nn.Module, _: Any) -> None:
    kept = vars(module)
    for prefix in prefixes:
        frequencies = module._buffers.get(f"{prefix}inv_freq")
        original = getattr(module, f"{prefix}original_inv_freq", None)
        if frequencies is not None and original is not None and "original_max_seq_len" in kept:
            module._buffers[f"{prefix}inv_freq"] = original.to(frequencies.device)
            kept[f"{prefix}max_seq_len_cached"] = kept["original_max_seq_len"]


def _put_back(module: nn.Module, kept: dict[str, Any], buffers: dict[str, Tensor | None]) -> None:
    vars(module).clear()
    vars(module).update(kept)
    module._buffers.clear()
    module._buffers.update(buffers)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module that has a gradient in eval mode there: dropout would make scores random."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = type(module).__name__ in NO_GRADIENT_IN_EVAL_MODE
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Turns off all parameter gradients: the tape then holds only what lies above the lowest activation."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def fused_gelus(model: nn.Module) -> Iterator[None]:
    """Runs tanh GELUs by PyTorch's fused kernel, which saves a sixth of GPT-2's time on a CPU."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, TANH_GELUS):
                stack.enter_context(calling(module, partial(gelu, approximate="tanh")))
        yield


@contextmanager
def calling(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replaces a module's `forward` on the instance."""
    # Another library may have put its own there already.
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


@contextmanager
def at_last_tokens(module: nn.Module, last_B: Tensor) -> Iterator[None]:
    """Runs a module at each row's last token only; its output is zero at all other tokens.

    Args:
        module: A module that treats tokens independently: it takes hidden states [B, T, H], and no other tensor
            with a token axis.
        last_B: The position of each row's last token.
    """
    tokens: list[int] = []

    def keep_last(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        tokens.clear()
        if not args or args[0].dim() != 3:
            return None
        tokens.append(args[0].shape[1])
        return (take_last(args[0], last_B), *args[1:])

    def spread(_: nn.Module, __: Any, output: Any) -> Any:
        if not tokens:
            return output
        written_BH = first_tensor(output)[:, 0]
        row_B = torch.arange(len(last_B), device=written_BH.device)
        zeros_BTH = written_BH.new_zeros(len(last_B), tokens[0], written_BH.shape[-1])
        return replace_first(output, zeros_BTH.index_put((row_B, last_B.to(written_BH.device)), written_BH))

    with ExitStack() as hooks:
        hooks.callback(module.register_forward_pre_hook(keep_last).remove)
        hooks.callback(module.register_forward_hook(spread).remove)
        yield


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the modules' outputs in the order given; the first to run becomes the leaf of the tape."""
    outputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def record(place: int, output: Any) -> Any:
        hidden = first_tensor(output)
        outputs[place] = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        # The model gets a copy, since some blocks add the residual in place.
        return replace_first(output, outputs[place].clone())

    with outputs_changed(modules, record):
        yield outputs


@contextmanager
def inputs_recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the detached inputs of the modules, in the order given."""
    inputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def record(place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[place] = first_given(args, kwargs).detach()

    with ExitStack() as stack:
        for place, module in enumerate(modules):
            handle = module.register_forward_pre_hook(
                lambda _, args, kwargs, place=place: record(place, args, kwargs), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield inputs


@contextmanager
def outputs_changed(modules: Iterable[nn.Module], change: Callable[[int, Any], Any]) -> Iterator[None]:
    """Replaces each module's output by `change(place, output)`, where that is not None."""
    with ExitStack() as hooks:
        for place, module in enumerate(modules):
            handle = module.register_forward_hook(lambda _, __, output, place=place: change(place, output))
            hooks.callback(handle.remove)
        yield


def take_last(hidden_BTH: Tensor, last_B: Tensor) -> Tensor:
    """Each row's hidden state at its last token, [B, 1, H]."""
    row_B = torch.arange(len(last_B), device=hidden_BTH.device)
    return hidden_BTH[row_B, last_B.to(hidden_BTH.device)][:, None]


def first_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A module's first input, positional or by name."""
    given: Tensor = next(iter((*args, *kwargs.values())))
    return given


def first_tensor(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    tensor: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return tensor


def replace_first(output: Any, tensor: Tensor) -> Any:
    """The same output with another tensor in the place of its first."""
    if isinstance(output, list):
        return [tensor, *output[1:]]
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
