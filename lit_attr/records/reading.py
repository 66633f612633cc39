"""Reading a run's records back, without torch.

Axes: L layers, T tokens of one contrast.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import msgspec

from lit_attr.errors import check_choice
from lit_attr.records.files import check_path, record_fields
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import BatchRecord, Example

if TYPE_CHECKING:
    import datasets
    import pandas as pd


Kind = Literal["records", "dataset", "pandas"]


@overload
def load_attributions(folder: str | Path, kind: Literal["records"] = "records") -> Iterator[dict[str, Any]]: ...


@overload
def load_attributions(folder: str | Path, kind: Literal["dataset"]) -> datasets.Dataset: ...


@overload
def load_attributions(folder: str | Path, kind: Literal["pandas"]) -> pd.DataFrame: ...


def load_attributions(
    folder: str | Path, kind: Kind = "records"
) -> Iterator[dict[str, Any]] | datasets.Dataset | pd.DataFrame:
    """Reads the attributions that a run has written so far.

    Args:
        folder: A run's output folder.
        kind: `records` yields one dict a contrast: the fields of its example in the batch file, then the file's
            `layers` and `rule`. `scores` maps each component to its kinds of scores, `sum` and perhaps `l2`, which
            are float64 arrays of layers × tokens. `dataset` and `pandas` have a row a contrast, with the scores as
            nested lists.

    Raises:
        ArgumentError: `kind` is another word.
        UserError: The folder is not one of lit-attr's or has another version, or a file in it does not follow its
            format.
    """
    check_choice("kind", kind, get_args(Kind))
    check_path("folder", Path(folder))
    run = RunFolder(folder)
    run.read_manifest()
    records = (record for _, batch in run.read_batches() for record in records_of(batch))
    if kind == "records":
        return records
    rows = [with_lists(record) for record in records]
    if kind == "pandas":
        import pandas as pd

        return pd.DataFrame(rows)
    # Imported here: it takes most of a second.
    import datasets

    return datasets.Dataset.from_list(rows)


def records_of(batch: BatchRecord) -> Iterator[dict[str, Any]]:
    """The contrasts of a batch, each as `load_attributions` yields it."""
    return (record_of(batch, example) for example in batch.examples)


def record_of(batch: BatchRecord, example: Example) -> dict[str, Any]:
    """A contrast of a batch as `load_attributions` yields it."""
    return {**to_dict(example), "layers": batch.layers, "rule": batch.rule}


def to_dict(record: msgspec.Struct) -> dict[str, Any]:
    """A record as nested dicts and lists, without the fields that are not set; arrays stay arrays."""
    return {name: _plain(value) for name, value in record_fields(record).items()}


def with_lists(record: dict[str, Any]) -> dict[str, Any]:
    """A record of `load_attributions` with the scores as nested lists."""
    scores = {
        component: {kind: scores_LT.tolist() for kind, scores_LT in kinds.items()}
        for component, kinds in record["scores"].items()
    }
    return {**record, "scores": scores}


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return to_dict(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], msgspec.Struct):
        return [_plain(each) for each in value]
    return value
