"""Fingerprints: what decides on the content of a table, in one hash."""

from __future__ import annotations

import hashlib
import inspect
import sys
import unicodedata
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_attr.facts.rows import Reading
from lit_attr.facts.table.parts import Making

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of the files of a table.
FORMAT = 1
# What reads rows and tokenises them.
LIBRARIES = ("tokenizers", "transformers", "pyarrow", "datasets")
DIGITS = 32
BLOCK_BYTES = 2**20
# Has digits, accents, a contraction, two scripts, and spaces: what a setting changes shows in its tokens.
PROBE = "  The café in São Paulo isn't 1,234 km from 東京.\n"


def fingerprint(rows: str, reading: Reading, making: Making) -> str:
    """A hash of all that decides on a table.

    Args:
        rows: The fingerprint of the rows.
        reading: How they are read.
        making: How contrasts are made of them.
    """
    parts = [
        FORMAT,
        rows,
        # The order of columns or of relations is nothing that matters.
        [sorted(reading.columns.items()), sorted(reading.relation_ids or []), reading.relation_ids is None],
        [*reading._replace(columns={}, relation_ids=None)],
        [making.step, making.add_bos_token, making.max_tokens, making.has_donors, making.by_name],
        # Without donors it decides on orders alone, which are kept by seed.
        making.seed if making.has_donors else None,
        tokenizer_fingerprint(making.tokenizer),
        code_fingerprint(),
        [version(name) for name in LIBRARIES],
        unicodedata.unidata_version,
        sys.version_info[:2],
    ]
    return _hash(repr(parts).encode("utf-8", "surrogatepass"))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a fast tokenizer makes of texts, whatever its name."""
    kind = type(tokenizer)
    parts = [
        kind.__module__,
        kind.__qualname__,
        # Its vocabulary, and all rules of the part that is not Python.
        tokenizer.backend_tokenizer.to_str(),
        sorted(map(repr, tokenizer.added_tokens_decoder.items())),
        tokenizer.all_special_tokens,
        tokenizer.bos_token_id,
        tokenizer.unk_token_id,
        # Code that comes with a model is not of the version of a library.
        inspect.getsource(kind) if kind.__module__.startswith("transformers_modules") else "",
        [tokenizer(PROBE, add_special_tokens=special).input_ids for special in (True, False)],
    ]
    return _hash(repr(parts).encode("utf-8", "surrogatepass"))


def code_fingerprint() -> str:
    """A hash of this package's code that makes facts and contrasts."""
    facts = Path(__file__).parents[1]
    files = [*facts.rglob("*.py"), *(facts.parent / name for name in ("errors.py", "text.py"))]
    return _hash(*(path.read_bytes() for path in sorted(files)))


def file_fingerprint(path: Path) -> str:
    """A hash of a file and of the end of its name, by which it is read.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256(repr(path.suffixes[-2:]).encode())
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()[:DIGITS]


def _hash(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:DIGITS]
