"""What a model is asked: facts, and the contrasts between their two answers.

Names are imported when they are first used: reading records needs roles and contrasts, but not torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_attr.facts.batches import ContrastBatch, collate_contrasts
    from lit_attr.facts.buckets import RankSampler, bucket_by_length, in_batches
    from lit_attr.facts.collator import ContrastCollator
    from lit_attr.facts.contrasts import Contrast, ContrastKey, Donor, Step, order_key, random_order
    from lit_attr.facts.roles import MEAN_ROLES, POSITION_0, ROLES, Role, mean_mask_RT, role_mask_RT, roles_of
    from lit_attr.facts.rows import Fact, FactTable, Rejected, parse_fact, read_facts
    from lit_attr.facts.sources import SAMPLE, open_rows
    from lit_attr.facts.table.donors import with_donors, with_named_donors
    from lit_attr.facts.templates import Template, parse_template
    from lit_attr.facts.tokenization import build_contrasts

__all__ = [
    "MEAN_ROLES",
    "POSITION_0",
    "ROLES",
    "SAMPLE",
    "Contrast",
    "ContrastBatch",
    "ContrastCollator",
    "ContrastKey",
    "Donor",
    "Fact",
    "FactTable",
    "RankSampler",
    "Rejected",
    "Role",
    "Step",
    "Template",
    "bucket_by_length",
    "build_contrasts",
    "collate_contrasts",
    "in_batches",
    "mean_mask_RT",
    "open_rows",
    "order_key",
    "parse_fact",
    "parse_template",
    "random_order",
    "read_facts",
    "role_mask_RT",
    "roles_of",
    "with_donors",
    "with_named_donors",
]

_NAMES = {
    "batches": ("ContrastBatch", "collate_contrasts"),
    "buckets": ("RankSampler", "bucket_by_length", "in_batches"),
    "collator": ("ContrastCollator",),
    "contrasts": ("Contrast", "ContrastKey", "Donor", "Step", "order_key", "random_order"),
    "table.donors": ("with_donors", "with_named_donors"),
    "roles": ("MEAN_ROLES", "POSITION_0", "ROLES", "Role", "mean_mask_RT", "role_mask_RT", "roles_of"),
    "rows": ("Fact", "FactTable", "Rejected", "parse_fact", "read_facts"),
    "sources": ("SAMPLE", "open_rows"),
    "templates": ("Template", "parse_template"),
    "tokenization": ("build_contrasts",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a public name from its module."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(f"{__name__}.{_MODULE_OF[name]}"))[name]
