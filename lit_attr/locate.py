"""Where in a causal language model a component writes into the residual stream.

No other file knows how an architecture names its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import nn
from transformers import PreTrainedModel

from lit_attr.errors import UserError

# What the field's implementations call the two sublayers of a decoder block.
COMPONENT_NAMES = {
    "mlp": ("mlp", "feed_forward"),
    "attention": ("attn", "self_attn", "attention", "self_attention"),
}
# Their module is called as the others are, but its output is not the write into the residual stream: Bloom and MPT
# add the residual inside, Gemma 2 and 3 and OLMo 2 normalise afterwards, Granite scales.
WRITE_IS_NOT_THE_OUTPUT = {"bloom", "mpt", "gemma2", "gemma3", "gemma3_text", "olmo2", "granite", "granitemoe"}


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
        UserError: A layer is out of range, or the component is not found or not understood in this architecture.
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
    model_type = model.config.model_type
    if model_type in WRITE_IS_NOT_THE_OUTPUT:
        raise UserError(
            f"model.component: in {model_type} models the {component} module's output is not what is added to the "
            "residual stream, so its scores would be wrong; use block, or a path with {layer} in it"
        )
    return Location(chosen, tuple(_component(blocks[layer], component) for layer in chosen))


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
