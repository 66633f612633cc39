"""Contrastive gradient × activation of language models over whole data sets, as a Lightning prediction module."""

from lit_attr.attribution import AttributionBatch, attribute_batch
from lit_attr.collator import ContrastCollator
from lit_attr.contrasts import Contrast, ContrastBatch, build_contrasts, collate_contrasts
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.module import AttributionModule
from lit_attr.monitor import AttributionMonitor
from lit_attr.notebook import Attribution, Attributions, attribute
from lit_attr.reading import load_attributions
from lit_attr.writer import AttributionWriter

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
