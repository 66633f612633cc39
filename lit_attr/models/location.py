"""The modules at which a component of a causal language model writes into the residual stream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from typing import NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_attr.errors import ArgumentError
from lit_attr.models.hooks import evaluating, fresh_rotary_frequencies, frozen, uncompiled
from lit_attr.models.language_model import broken_weight
from lit_attr.models.layers import Layers, resolve_layers
from lit_attr.models.limits import ModelLimits, model_limits
from lit_attr.models.selftest import (
    ROWS,
    TOKENS,
    BlockCall,
    Recording,
    is_needed_last_only,
    record,
    shows_other_widths,
)
from lit_attr.models.writes import COMPONENT_NAMES, BlockWrites, named_children
from lit_attr.text import counted


class Location(NamedTuple):
    """The modules of one or several components, by layer and, within a layer, in the order of the components.

    Attributes:
        layers: The layer index of each module, from 0, in ascending order.
        modules: The modules whose outputs are the components' writes.
        paths: The dotted path of each of these modules from the model.
        components: The component of each module.
        top_mlp: The MLP of the last block, where a layer's write there is located and the MLP is only needed at
            the last token: its writes at other tokens do not reach the logits after the last one, and nothing
            inside it is scored.
        depends_on_width: Whether the model's numbers depend on the width of a batch in a way that its config does
            not state: rows of different lengths then go through it apart.
        limits: The model's positions and vocabulary, and how widths change its rotary frequencies.
    """

    layers: tuple[int, ...]
    modules: tuple[nn.Module, ...]
    paths: tuple[str, ...]
    components: tuple[str, ...]
    top_mlp: nn.Module | None = None
    depends_on_width: bool = False
    limits: ModelLimits = ModelLimits(None, None)

    @property
    def is_top_only_at_last_L(self) -> list[bool]:
        """Which modules' writes reach the logits from the last token alone: those of the top MLP."""
        return [module is self.top_mlp for module in self.modules]

    def of(self, component: str) -> Location:
        """The modules of one of the components; none where it is not among them."""
        places = [place for place, name in enumerate(self.components) if name == component]
        return self._replace(
            layers=tuple(self.layers[place] for place in places),
            modules=tuple(self.modules[place] for place in places),
            paths=tuple(self.paths[place] for place in places),
            components=tuple(self.components[place] for place in places),
        )

    @property
    def template(self) -> str:
        """The common path, with `{layer}` for the layer; several paths where the layers differ."""
        paths = zip(self.layers, self.paths, strict=True)
        return ", ".join(dict.fromkeys(re.sub(rf"\b{layer}\b", "{layer}", path, count=1) for layer, path in paths))


def locate(
    model: PreTrainedModel,
    *,
    layers: Layers = "all",
    component: str | Sequence[str] = "mlp",
    self_test: bool = True,
) -> Location:
    """Finds the modules whose outputs are scored.

    The write of `mlp` or `attention` is what that part of a block adds to the residual stream. Where its module's
    own output is something else, the write is the output of a module that runs after it (the norm in Gemma 2), or
    of the last one inside it (the projection in Bloom, which adds the residual itself). The first candidate that
    passes the self-test is taken.

    Args:
        model: A causal language model.
        layers: `all`, one layer or several, see `resolve_layers`.
        component: `mlp`, `attention`, `block`, or a dotted path from the model with `{layer}` in it; or several.
        self_test: Whether to run the model over a few tokens, to find the write and to refuse a module that would
            give wrong scores. Without it the component's own module is taken.

    Raises:
        ArgumentError: A layer is out of range, the component is not found, or the self-test fails.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ArgumentError(
            "model",
            "its adapter adds virtual tokens before every prompt (prompt or prefix tuning), which have no scores; "
            "use the model without it",
        )
    names = named_components(component)
    with uncompiled(model) as model, ExitStack() as stack:
        for context in (evaluating, frozen, fresh_rotary_frequencies):
            stack.enter_context(context(model))
        return _locate(model, layers, names, self_test)


def named_components(component: str | Sequence[str]) -> tuple[str, ...]:
    """The components that are named, in their order.

    Args:
        component: One or several.

    Raises:
        ArgumentError: There is none, one comes twice, or one is neither a known one nor a path.
    """
    names = (component,) if isinstance(component, str) else tuple(component)
    if not names:
        raise ArgumentError("component", "the list is empty; name one, such as mlp")
    for name in names:
        if "{layer}" not in name and name not in (*COMPONENT_NAMES, "block"):
            raise ArgumentError("component", _no_component(name))
        if names.count(name) > 1:
            raise ArgumentError("component", f"{name} is named twice; name it once")
    return names


def _locate(model: PreTrainedModel, layers: Layers, names: Sequence[str], self_test: bool) -> Location:
    """The same for a model in eval mode, without gradients for its parameters and not compiled."""
    chosen = _chosen_layers(model, layers, names)
    in_blocks = any("{layer}" not in name for name in names)
    blocks = [*_submodule(model, decoder_stack(model)).children()] if in_blocks else []
    recording = record(model, blocks) if self_test else None
    if recording is not None and recording.looks_ahead:
        raise ArgumentError(
            "model",
            "its tokens attend to later ones, so it is not a causal language model, and padding would change "
            "its scores; use another one",
        )
    writes: dict[int, BlockWrites] = {}
    if recording is not None and not {*COMPONENT_NAMES}.isdisjoint(names):
        writes = {layer: BlockWrites(_only_call(model, recording, blocks[layer], layer)) for layer in chosen}
    paths = {module: path for path, module in model.named_modules()}
    places = [(layer, name) for layer in chosen for name in names]
    modules = [_module(model, blocks, writes, layer, name) for layer, name in places]
    limits = model_limits(model)
    location = Location(
        tuple(layer for layer, _ in places),
        tuple(modules),
        tuple(paths[module] for module in modules),
        tuple(name for _, name in places),
        limits=limits,
    )
    if recording is None:
        return location
    _refuse_unreadable(location, recording)
    if not recording.is_finite and (broken := broken_weight(model)) is not None:
        raise ArgumentError("model", f"it gives logits that are not finite; {broken}")
    top = writes[chosen[-1]].mlp if names[0] in COMPONENT_NAMES and chosen[-1] == len(blocks) - 1 else None
    # What is scored inside it is needed at all tokens.
    if top is not None and any(module in {*top.modules()} - {top} for module in modules):
        top = None
    return location._replace(
        top_mlp=top if top is not None and is_needed_last_only(model, top, recording.logits_BTV) else None,
        depends_on_width=shows_other_widths(model, limits, recording.logits_BTV),
    )


def _chosen_layers(model: PreTrainedModel, layers: Layers, names: Sequence[str]) -> tuple[int, ...]:
    """The layers that are chosen, which are the same for each component."""
    stacks = [name.partition(".{layer}")[0] if "{layer}" in name else decoder_stack(model) for name in names]
    chosen = [resolve_layers(layers, len([*_submodule(model, stack).children()])) for stack in stacks]
    for name, other in zip(names, chosen, strict=True):
        if other != chosen[0]:
            raise ArgumentError(
                "component",
                f"{names[0]} is in {counted(len(chosen[0]), 'layer')} and {name} in {len(other)}; give each a run "
                "of its own",
            )
    return chosen[0]


def _module(
    model: PreTrainedModel, blocks: Sequence[nn.Module], writes: Mapping[int, BlockWrites], layer: int, name: str
) -> nn.Module:
    """The module whose output is scored for a component in a layer."""
    if "{layer}" in name:
        return _submodule(model, name.replace("{layer}", str(layer)))
    if name == "block":
        return blocks[layer]
    return _write(model, writes[layer], name) if writes else _named_child(model, blocks[layer], name)


def named_mlps(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The MLP modules of all decoder blocks, with their paths. A block may have none."""
    return [named for block in _named_by_block(model, "mlp") for named in block]


def attentions_by_block(model: PreTrainedModel) -> list[list[tuple[str, nn.Module]]]:
    """The attention modules of each decoder block, with their paths. A block may have none."""
    return _named_by_block(model, "attention")


def token_embedding(model: PreTrainedModel) -> nn.Embedding:
    """The module that maps token ids to hidden states."""
    return cast(nn.Embedding, model.get_input_embeddings())


def input_device(model: PreTrainedModel) -> torch.device:
    """The device of the model's input; the CPU where its embedding is offloaded to disk."""
    device = token_embedding(model).weight.device
    # accelerate moves the input of an offloaded model to where it runs.
    return device if device.type != "meta" else torch.device("cpu")


def _named_by_block(model: PreTrainedModel, component: str) -> list[list[tuple[str, nn.Module]]]:
    names = {module: name for name, module in model.named_modules()}
    blocks = _submodule(model, decoder_stack(model)).children()
    return [[(names[child], child) for child in named_children(block, component)] for block in blocks]


def decoder_stack(model: PreTrainedModel) -> str:
    """The path of the list of decoder blocks: the outermost list as long as the config's number of layers."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks: dict[str, nn.ModuleList] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    outermost = {
        name: module
        for name, module in stacks.items()
        if not any(name.startswith(f"{other}.") for other in stacks)
    }
    if len(outermost) > 1:
        # A vision tower or a list of norms beside the text decoder can happen to be as long.
        outermost = {
            name: module
            for name, module in outermost.items()
            if all(named_children(block, "attention") for block in module)
        }
    if len(outermost) > 1:
        decoder = {*model.get_decoder().modules()}
        outermost = {name: module for name, module in outermost.items() if module in decoder}
    if len(outermost) != 1:
        raise ArgumentError(
            "component",
            f"{type(model).__name__} has {len(outermost)} lists of modules that could be its decoder blocks, not "
            f"one; {_name_a_path(model)}",
        )
    (name,) = outermost
    return name


def _no_component(component: str) -> str:
    known = (*COMPONENT_NAMES, "block")
    meant = {alias: name for name, aliases in COMPONENT_NAMES.items() for alias in aliases}
    meant |= {name: name for name in known} | {"layer": "block", "attentions": "attention", "mlps": "mlp"}
    close = get_close_matches(component.lower(), meant, 1)
    guess = f"; did you mean {meant[close[0]]}?" if close else ""
    return f"{component!r} is none of {', '.join(known)}, nor a path with {{layer}} in it{guess}"


def _only_call(model: nn.Module, recording: Recording, block: nn.Module, layer: int) -> BlockCall:
    calls = [call for call in recording.calls if call.block is block]
    if len(calls) != 1:
        raise ArgumentError("layers", f"layer {layer} runs {len(calls)} times in a forward pass; leave it out")
    if not calls[0].hidden_BTH.isfinite().all():
        fix = broken_weight(model) or "the dtype float32 may fix it, otherwise the model's weights are broken"
        if calls[0].hidden_BTH.dtype == torch.float16:
            fix = "float16 overflows in this model; set dtype to bfloat16"
        raise ArgumentError("model", f"layer {layer} gets numbers that are not finite; {fix}")
    return calls[0]


def _write(model: nn.Module, writes: BlockWrites, component: str) -> nn.Module:
    """The module of a block whose output the component adds to the residual stream."""
    write = writes.mlp if component == "mlp" else writes.attention
    if write is not None:
        return write
    block = writes.call.block
    why = (
        f"neither the output of its {component} module nor that of another module is what it adds to the residual "
        "stream, so scores would be wrong"
        if named_children(block, component)
        else f"none of its modules is known to be its {component}"
    )
    raise ArgumentError(
        "component",
        f"{type(block).__name__} is not supported: {why}; choose block, or {_name_a_path(model, block)}",
    )


def _named_child(model: nn.Module, block: nn.Module, component: str) -> nn.Module:
    named = named_children(block, component)
    if len(named) != 1:
        what = f"{type(block).__name__} has {len(named)} {component} modules, not one"
        raise ArgumentError("component", f"{what}; {_name_a_path(model, block)}")
    return named[0]


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ArgumentError("component", f"this model has no module {path}; {_name_a_path(model)}") from error


def _name_a_path(model: nn.Module, block: nn.Module | None = None) -> str:
    """The fix for a component that is not found: the paths that exist, in a block or in the whole model."""
    inside = set(model.modules() if block is None else block.modules()) - {block}
    paths = (
        re.sub(r"(^|\.)\d+(?=\.|$)", r"\1{layer}", name)
        for name, module in model.named_modules()
        if module in inside and len(re.findall(r"(?:^|\.)\d+(?=\.|$)", name)) == 1
    )
    listed = ", ".join(dict.fromkeys(paths))
    return f"name a module by its path, one of {listed}"


def _refuse_unreadable(location: Location, recording: Recording) -> None:
    """Refuses a module that does not run once, with one vector for each token."""
    for module, path in zip(location.modules, location.paths, strict=True):
        shapes = recording.shapes.get(module, [])
        if len(shapes) != 1:
            raise ArgumentError(
                "component",
                f"{path} returns {len(shapes)} tensors in a forward pass, not one; name a module that runs once",
            )
        if shapes[0][:2] != (ROWS, TOKENS) and shapes[0][:1] != (ROWS * TOKENS,):
            raise ArgumentError(
                "component",
                f"the output of {path} has the shape {list(shapes[0])} for {ROWS} rows of {TOKENS} tokens, not a "
                "vector for each token; name another module, or use the model without an adapter that adds tokens",
            )
