"""Contrastive gradient × activation of language models over whole data sets, as a Lightning prediction module."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_attr.attribution.catalogue import RuleOptions
    from lit_attr.attribution.gradient import attribute_batch
    from lit_attr.attribution.results import AttributionBatch
    from lit_attr.callbacks.monitor import AttributionMonitor
    from lit_attr.callbacks.writer import AttributionWriter
    from lit_attr.datamodule import CounterfactDataModule
    from lit_attr.errors import UserError
    from lit_attr.facts.batches import ContrastBatch, collate_contrasts
    from lit_attr.facts.collator import ContrastCollator
    from lit_attr.facts.contrasts import Contrast
    from lit_attr.facts.tokenization import build_contrasts
    from lit_attr.module import AttributionModule
    from lit_attr.notebook import Attribution, Attributions, attribute
    from lit_attr.records.reading import load_attributions
    from lit_attr.settings import LoadingOptions

__all__ = [
    "Attribution",
    "AttributionBatch",
    "AttributionModule",
    "AttributionMonitor",
    "AttributionWriter",
    "Attributions",
    "Contrast",
    "ContrastBatch",
    "ContrastCollator",
    "CounterfactDataModule",
    "LoadingOptions",
    "RuleOptions",
    "UserError",
    "attribute",
    "attribute_batch",
    "build_contrasts",
    "collate_contrasts",
    "load_attributions",
]

# Imported when they are used: torch and Lightning take seconds, and reading records needs neither.
_MODULES = {
    "Attribution": "notebook",
    "AttributionBatch": "attribution.results",
    "AttributionModule": "module",
    "AttributionMonitor": "callbacks.monitor",
    "AttributionWriter": "callbacks.writer",
    "Attributions": "notebook",
    "Contrast": "facts.contrasts",
    "ContrastBatch": "facts.batches",
    "ContrastCollator": "facts.collator",
    "CounterfactDataModule": "datamodule",
    "LoadingOptions": "settings",
    "RuleOptions": "attribution.catalogue",
    "UserError": "errors",
    "attribute": "notebook",
    "attribute_batch": "attribution.gradient",
    "build_contrasts": "facts.tokenization",
    "collate_contrasts": "facts.batches",
    "load_attributions": "records.reading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
