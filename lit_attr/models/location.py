"""The modules at which a component of a causal language model writes into the residual stream.

This is the only file that knows how architectures name their parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from typing import NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_attr.errors import ArgumentError
from lit_attr.models.hooks import evaluating, fresh_rotary_frequencies, frozen, uncompiled
from lit_attr.models.language_model import broken_weight
from lit_attr.models.limits import limits_of
from lit_attr.models.selftest import (
    ROWS,
    TOKENS,
    BlockCall,
    Recording,
    are_all,
    is_added,
    is_needed_last_only,
    record,
    shows_other_widths,
)

Layers = Sequence[int | str] | int | str
# As in Python.
SLICE = r"(-?\d+)?:(-?\d+)?(:(-?\d+)?)?"
# The names that implementations give the two sublayers of a decoder block.
COMPONENT_NAMES = {
    "mlp": ("mlp", "feed_forward", "ffn"),
    "attention": ("attn", "self_attn", "attention", "self_attention"),
}


class Location(NamedTuple):
    """The modules of a component, one for each layer.

    Attributes:
        layers: Layer indices from 0, in ascending order.
        modules: The module of each layer whose output is the component's write.
        paths: The dotted path of each of these modules from the model.
        top_at_last_token: Whether the highest module is in the last block and only needed at the last token: its
            writes at other tokens do not reach the logits after the last one.
        depends_on_width: Whether the model's numbers depend on the width of a batch in a way that its config does
            not state: rows of different lengths then go through it apart.
    """

    layers: tuple[int, ...]
    modules: tuple[nn.Module, ...]
    paths: tuple[str, ...]
    top_at_last_token: bool = False
    depends_on_width: bool = False

    @property
    def template(self) -> str:
        """The common path, with `{layer}` for the layer; several paths where the layers differ."""
        paths = zip(self.layers, self.paths, strict=True)
        return ", ".join(dict.fromkeys(re.sub(rf"\b{layer}\b", "{layer}", path, count=1) for layer, path in paths))


def locate(
    model: PreTrainedModel,
    *,
    layers: Layers = "all",
    component: str = "mlp",
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
        component: `mlp`, `attention`, `block`, or a dotted path from the model with `{layer}` in it.
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
    by_path = "{layer}" in component
    if not by_path and component not in (*COMPONENT_NAMES, "block"):
        raise ArgumentError("component", _no_component(component))
    with uncompiled(model) as model, ExitStack() as stack:
        for context in (evaluating, frozen, fresh_rotary_frequencies):
            stack.enter_context(context(model))
        return _locate(model, layers, component, self_test)


def _locate(model: PreTrainedModel, layers: Layers, component: str, self_test: bool) -> Location:
    """The same for a model in eval mode, without gradients for its parameters and not compiled."""
    by_path = "{layer}" in component
    stack = component.partition(".{layer}")[0] if by_path else _decoder_stack(model)
    blocks = list(_submodule(model, stack).children())
    chosen = resolve_layers(layers, len(blocks))
    recording = record(model, [] if by_path else blocks) if self_test else None
    if recording is not None and recording.looks_ahead:
        raise ArgumentError(
            "model",
            "its tokens attend to later ones, so it is not a causal language model, and padding would change "
            "its scores; use another one",
        )
    if by_path:
        modules = [_submodule(model, component.replace("{layer}", str(layer))) for layer in chosen]
    elif component == "block":
        modules = [blocks[layer] for layer in chosen]
    elif recording is None:
        modules = [_named_child(model, blocks[layer], component) for layer in chosen]
    else:
        modules = [
            _write(model, _only_call(model, recording, blocks[layer], layer), component) for layer in chosen
        ]
    top = recording is not None and component == "mlp" and chosen[-1] == len(blocks) - 1
    names = {module: name for name, module in model.named_modules()}
    location = Location(
        chosen,
        tuple(modules),
        tuple(names[module] for module in modules),
        top_at_last_token=top and is_needed_last_only(model, modules[-1]),
        depends_on_width=recording is not None and shows_other_widths(model, limits_of(model.config)),
    )
    if recording is not None:
        _refuse_unreadable(location, recording)
    if recording is not None and not recording.is_finite and (broken := broken_weight(model)) is not None:
        raise ArgumentError("model", f"it gives logits that are not finite; {broken}")
    return location


def resolve_layers(layers: Layers, count: int) -> tuple[int, ...]:
    """Layer indices in ascending order, each once; negative ones count from the top.

    Args:
        layers: `all`, one index, or several: a list, or text such as `4-8` (8 included), `0:12:2` (as in Python,
            12 not included) or `0,4-8`; lists may hold such texts.
        count: How many layers the model has.

    Raises:
        ArgumentError: An index is out of range, there is none, or a text is none of these.
    """
    wanted = [
        layer for part in ([layers] if isinstance(layers, (int, str)) else layers) for layer in _each(part, count)
    ]
    for layer in wanted:
        if not -count <= layer < count:
            # YAML takes 1:2 for 1 · 60 + 2.
            hint = f"; YAML reads {layer // 60}:{layer % 60} as {layer}, put it in quotes" if layer >= 60 else ""
            raise ArgumentError(
                "layers", f"there is no layer {layer}; this model has {count}, 0 to {count - 1}{hint}"
            )
    if not wanted:
        raise ArgumentError("layers", "the list is empty; name a layer, or all")
    return tuple(sorted({layer % count for layer in wanted}))


def check_layers(layers: Layers) -> None:
    """Refuses a text that names no layers, before a model is loaded.

    Raises:
        ArgumentError: It is neither `all`, an index, nor several as of `resolve_layers`.
    """
    for part in [layers] if isinstance(layers, (int, str)) else layers:
        for _ in _each(part, 1):
            pass


def _each(part: int | str, count: int) -> Iterator[int]:
    """The layers of one index or of one text."""
    if isinstance(part, int):
        yield part
        return
    for word in part.replace(" ", "").split(","):
        bounds = [int(bound) if bound else None for bound in word.split(":")] if re.fullmatch(SLICE, word) else []
        if word == "all":
            yield from range(count)
        elif re.fullmatch(r"[+-]?\d+", word):
            yield int(word)
        elif ends := re.fullmatch(r"(\d+)[-–](\d+)", word):
            first, last = int(ends[1]), int(ends[2])
            if last < first:
                raise ArgumentError("layers", f"{word!r} ends before it begins; write {last}-{first}")
            # A model without so many layers names the first that it lacks.
            yield from range(first, min(last, max(first, count)) + 1)
        elif bounds and bounds[2:] != [0]:
            yield from range(count)[slice(*bounds)]
        else:
            raise ArgumentError(
                "layers", f"{part!r} is neither all, a layer, nor a list of layers such as 4-8, 0:12:2 or 0,4-8"
            )


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
    blocks = _submodule(model, _decoder_stack(model)).children()
    return [[(names[child], child) for child in _named_children(block, component)] for block in blocks]


def _decoder_stack(model: PreTrainedModel) -> str:
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
            if all(_named_children(block, "attention") for block in module)
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


def _write(model: nn.Module, call: BlockCall, component: str) -> nn.Module:
    """The module of a block whose output the component adds to the residual stream."""
    mlp = _mlp_write(call)
    write = mlp if component == "mlp" else _attention_write(call, mlp)
    if write is not None:
        return write
    why = (
        f"neither the output of its {component} module nor that of another module is what it adds to the residual "
        "stream, so scores would be wrong"
        if _named_children(call.block, component)
        else f"none of its modules is known to be its {component}"
    )
    raise ArgumentError(
        "component",
        f"{type(call.block).__name__} is not supported: {why}; choose block, or {_name_a_path(model, call.block)}",
    )


def _mlp_write(call: BlockCall) -> nn.Module | None:
    named = _named_children(call.block, "mlp")
    # Where no norm comes before attention, the test's large states leave it large, so that it has to be silent.
    for silent in ((), _named_children(call.block, "attention")):
        for module in _candidates(call, "mlp"):
            if is_added(call, module, silent):
                # Any module other than the MLP itself may be only a part of the write.
                attention = None if module in named else _attention_write(call, module)
                if module in named or (attention is not None and are_all(call, (module, attention))):
                    return module
    return None


def _attention_write(call: BlockCall, mlp: nn.Module | None) -> nn.Module | None:
    named = _named_children(call.block, "attention")
    # An MLP that comes after attention depends on what attention writes.
    silent = () if mlp is None else (mlp,)
    for module in _candidates(call, "attention"):
        if is_added(call, module, silent) and (module in named or are_all(call, (module, *silent))):
            return module
    return None


def _candidates(call: BlockCall, component: str) -> list[nn.Module]:
    """The modules whose output may be the write, the likeliest first."""
    named = _named_children(call.block, component)
    others = {
        child for other in COMPONENT_NAMES if other != component for child in _named_children(call.block, other)
    }
    children = [module for module in call.writers if module in set(call.block.children()) - others]
    if not named and component == "mlp":
        # OPT's projections are children of the block itself. The last to run is the one that writes.
        return children[::-1]
    if len(named) != 1 or named[0] not in children:
        return []
    inside = [module for module in call.writers if module in set(named[0].modules()) - set(named)]
    return children[children.index(named[0]) :] + inside[::-1]


def _named_children(block: nn.Module, component: str) -> list[nn.Module]:
    return [child for name, child in block.named_children() if name in COMPONENT_NAMES[component]]


def _named_child(model: nn.Module, block: nn.Module, component: str) -> nn.Module:
    named = _named_children(block, component)
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
