"""Contrastive gradient × activation of language models over whole data sets, as a Lightning prediction module."""

from lit_attr.attribution.gradient import AttributionBatch, attribute_batch
from lit_attr.callbacks.monitor import AttributionMonitor
from lit_attr.callbacks.writer import AttributionWriter
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.collator import ContrastCollator
from lit_attr.facts.contrasts import Contrast, ContrastBatch, build_contrasts, collate_contrasts
from lit_attr.module import AttributionModule
from lit_attr.notebook import Attribution, Attributions, attribute
from lit_attr.records.reading import load_attributions

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
    "UserError",
    "attribute",
    "attribute_batch",
    "build_contrasts",
    "collate_contrasts",
    "load_attributions",
]
