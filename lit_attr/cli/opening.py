"""The first lines of a run: its facts, and what of which model is attributed."""

from __future__ import annotations

from itertools import groupby

from lit_attr.attribution.adaptive import depth_of
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.models.weights.quantization import quantization_settings
from lit_attr.module import AttributionModule
from lit_attr.text import counted, cut

MAX_NAME = 100  # characters


def facts_line(data: CounterfactDataModule) -> str:
    """How many facts a run has, how many contrasts these make, and how many rows were refused.

    Args:
        data: The data module, after its `setup`.
    """
    facts = count_facts(data)
    source = cut(str(data.source), MAX_NAME)
    contrasts = counted(len(data.table), "contrast")
    return f"facts: {facts} from {source} ({contrasts}), {counted(len(data.rejected), 'row')} refused"


def count_facts(data: CounterfactDataModule) -> int:
    """How many facts the contrasts of a run are of.

    Args:
        data: The data module, after its `setup`.
    """
    if (data.step or data.requirements.step) != "all":
        return len(data.table)
    keys = data.table.keys()
    return len({fact for fact, _ in keys})


def model_line(module: AttributionModule) -> str:
    """The name of the model, which may take a while to load."""
    return f"model: {'demo' if module.model_name == DEMO_MODEL else cut(module.model_name, MAX_NAME)}"


def component_line(module: AttributionModule) -> str:
    """What is attributed, once the model is loaded: component, layers, number format, device, and how.

    Args:
        module: The module, after its `configure_model`.
    """
    model, location = module.language_model, module.location
    if model is None or location is None:
        return f"component: {', '.join(module.components)}"
    layers, depth = [*dict.fromkeys(location.layers)], depth_of(model, location)
    where = f"all {counted(depth, 'layer')}" if len(layers) == depth else f"{_ranges(layers)} of {depth} layers"
    number_format = quantization_settings(model).get("quantization") or str(model.dtype).removeprefix("torch.")
    placed = getattr(model, "hf_device_map", None) or {"": module.input_device}
    devices = ", ".join(dict.fromkeys(map(str, placed.values())))
    how = f"rule {module.rule}" + (f", {module.ablation} ablation" if module.ablation != "zero" else "")
    return f"component: {', '.join(module.components)} of {where}, {number_format} on {devices}, {how}"


def _ranges(layers: list[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3 and 7: as `model.layers` takes them."""
    found = []
    for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0]):
        first, *others = [layer for _, layer in run]
        found.append(f"{first}-{others[-1]}" if others else str(first))
    return ", ".join(found)
