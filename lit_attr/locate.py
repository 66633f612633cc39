"""Where in a causal language model a component writes into the residual stream.

No other file knows how an architecture names its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_attr.errors import UserError
from lit_attr.hooks import evaluating, first_tensor, replace_first

Hook = tuple[nn.Module, Callable[..., Any]]

# What the field's implementations call the two sublayers of a decoder block.
COMPONENT_NAMES = {
    "mlp": ("mlp", "feed_forward", "ffn"),
    "attention": ("attn", "self_attn", "attention", "self_attention"),
}


class Location(NamedTuple):
    """The modules of a component, one a layer.

    Attributes:
        layers: Layer indices from 0, in ascending order.
        modules: The module of each of these layers whose output is the component's write.
    """

    layers: tuple[int, ...]
    modules: tuple[nn.Module, ...]


def locate(
    model: PreTrainedModel, *, layers: Sequence[int] | int | str = "all", component: str = "mlp"
) -> Location:
    """Finds the modules whose outputs are attributed to.

    Args:
        model: A causal language model.
        layers: `all`, one layer or several; negative ones count from the top.
        component: `mlp`, `attention`, `block`, or a dotted path from the model with `{layer}` in it.

    Raises:
        UserError: A layer is out of range, or the component is not found, or its module's output turns out not to
            be what is added to the residual stream.
    """
    blocks = _decoder_blocks(model)
    chosen = resolve_layers(layers, len(blocks))
    if "{layer}" in component:
        paths = [component.replace("{layer}", str(layer)) for layer in chosen]
        return Location(chosen, tuple(_submodule(model, path) for path in paths))
    if component == "block":
        return Location(chosen, tuple(blocks[layer] for layer in chosen))
    if component not in COMPONENT_NAMES:
        known = ", ".join((*COMPONENT_NAMES, "block"))
        raise UserError(f"model.component: {component!r} is none of {known}, nor a path with {{layer}} in it")
    location = Location(chosen, tuple(_component(blocks[layer], component) for layer in chosen))
    for layer, written in zip(chosen, _outputs_are_writes(model, blocks, location), strict=True):
        if not written:
            raise UserError(
                f"model.component: in layer {layer} of this {model.config.model_type} model the output of the "
                f"{component} module is not what is added to the residual stream, so its scores would be wrong; "
                "use block, or a path with {layer} in it"
            )
    return location


def resolve_layers(layers: Sequence[int] | int | str, count: int) -> tuple[int, ...]:
    """Layer indices in ascending order, each once, from `all`, an index or several; negatives count from the top.

    Raises:
        UserError: An index is out of range, or there is none.
    """
    if isinstance(layers, str) and layers != "all":
        raise UserError(f"model.layers: {layers!r} is neither all, a layer, nor a list of layers")
    wanted = range(count) if isinstance(layers, str) else [layers] if isinstance(layers, int) else layers
    for layer in wanted:
        if not -count <= layer < count:
            raise UserError(f"model.layers: there is no layer {layer}; this model has {count}, 0 to {count - 1}")
    if not wanted:
        raise UserError("model.layers: the list is empty; name a layer or say all")
    return tuple(sorted({layer % count for layer in wanted}))


def token_embedding(model: PreTrainedModel) -> nn.Embedding:
    """The module that turns token ids into hidden states."""
    return cast(nn.Embedding, model.get_input_embeddings())


def max_positions(model: PreTrainedModel) -> int | None:
    """How many tokens a context may have, where the model has a bound."""
    bound: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return bound


def _decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    count = model.config.get_text_config().num_hidden_layers
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    blocks = [stack for stack in stacks if any(_children(block, "attention") for block in stack)]
    if len(blocks) != 1:
        raise UserError(
            f"model.component: {type(model).__name__} has {len(blocks)} stacks of {count} attention blocks, "
            f"not one; give a path with {{layer}} in it, such as one of {', '.join(_list_paths(model))}"
        )
    return blocks[0]


def _children(block: nn.Module, component: str) -> list[nn.Module]:
    return [child for name, child in block.named_children() if name in COMPONENT_NAMES[component]]


def _component(block: nn.Module, component: str) -> nn.Module:
    found = _children(block, component)
    if len(found) != 1:
        names = ", ".join(name for name, _ in block.named_children())
        raise UserError(
            f"model.component: {type(block).__name__} has no single {component} module; it has {names}; "
            "give a path with {layer} in it"
        )
    return found[0]


@torch.no_grad()
def _outputs_are_writes(model: PreTrainedModel, blocks: nn.ModuleList, location: Location) -> list[bool]:
    """Whether a module's output is the very thing its block adds to the residual stream, layer by layer.

    Setting it to zero must then take just that off the block's output, and leave something there. It does not
    where a norm or a factor comes after the module (Gemma 2, OLMo 2, Granite), nor where the module adds the
    residual itself (Bloom, MPT). Three forward passes over four tokens serve for all layers. In the second and
    third each block gets its input of the first, made as small as the write, and its other sublayer writes zero:
    rounding in half precision would hide the write beside larger numbers. In the third, so does the module.
    """
    chosen = [blocks[layer] for layer in location.layers]
    pairs = list(zip(chosen, location.modules, strict=True))
    others = [
        m for block in chosen for c in COMPONENT_NAMES for m in _children(block, c) if m not in location.modules
    ]
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}
    zeroed: dict[nn.Module, Tensor] = {}

    def keep_input(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[block] = (args or (kwargs["hidden_states"],))[0].clone()

    def give_input(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (inputs[block], *args[1:]), {name: kwargs[name] for name in kwargs if name != "hidden_states"}

    def keep_output(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module] = first_tensor(output).clone()

    def keep_zeroed(block: nn.Module, _: Any, output: Any) -> None:
        zeroed[block] = first_tensor(output).clone()

    def give_zero(_: nn.Module, __: Any, output: Any) -> Any:
        return replace_first(output, torch.zeros_like(first_tensor(output)))

    with evaluating(model):
        _run(
            model,
            [(block, keep_input) for block in chosen],
            [(module, keep_output) for module in location.modules],
        )
        silent = {module for module in location.modules if not outputs[module].any()}
        for block, module in pairs:
            inputs[block] *= (outputs[module].abs().max() / inputs[block].abs().max()).clamp(max=1)
        smaller, alone = [(block, give_input) for block in chosen], [(module, give_zero) for module in others]
        _run(model, smaller, [*alone, *((module, keep_output) for module in (*chosen, *location.modules))])
        zeroing = [(module, give_zero) for module in location.modules]
        _run(model, smaller, [*alone, *zeroing, *((block, keep_zeroed) for block in chosen)])
    # A layer that writes nothing scores nothing, whatever comes after it.
    return [m in silent or _is_write(outputs[m], outputs[block], zeroed[block]) for block, m in pairs]


def _run(model: PreTrainedModel, on_input: Iterable[Hook], on_output: Iterable[Hook]) -> None:
    embedding = token_embedding(model)
    device = embedding.weight.device if not embedding.weight.is_meta else None
    with ExitStack() as hooks:
        for module, input_hook in on_input:
            hooks.callback(module.register_forward_pre_hook(input_hook, with_kwargs=True).remove)
        for module, output_hook in on_output:
            hooks.callback(module.register_forward_hook(output_hook).remove)
        model(input_ids=torch.arange(1, 5, device=device)[None] % embedding.num_embeddings, use_cache=False)


def _is_write(write: Tensor, clean: Tensor, zeroed: Tensor) -> bool:
    if write.shape != clean.shape:
        return False
    size, rounding = write.abs().max(), 4 * torch.finfo(clean.dtype).eps * clean.abs().max()
    off = (clean.float() - zeroed.float() - write.float()).abs().max()
    return bool(off <= 0.01 * size + rounding < 0.25 * size and zeroed.abs().max() > rounding)


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UserError(
            f"model.component: this model has no module {path}; layer 0 has {', '.join(_list_paths(model))}"
        ) from error


def _list_paths(model: nn.Module) -> list[str]:
    """The modules of the first layer of every stack, as paths with `{layer}`."""
    return [
        ".".join("{layer}" if part == "0" else part for part in name.split("."))
        for name, _ in model.named_modules()
        if name.split(".").count("0") == 1
    ]
