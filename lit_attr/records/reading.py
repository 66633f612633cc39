"""Reading an output folder back.

Axes: L layers, T tokens of one contrast.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lit_attr.errors import UserError
from lit_attr.records.encoding import MANIFEST_FORMAT, check_header, read_json
from lit_attr.records.folder import OutputFolder

if TYPE_CHECKING:
    import datasets
    import pandas as pd


@overload
def load_attributions(folder: str | Path, kind: Literal["records"] = "records") -> Iterator[dict[str, Any]]: ...


@overload
def load_attributions(folder: str | Path, kind: Literal["dataset"]) -> datasets.Dataset: ...


@overload
def load_attributions(folder: str | Path, kind: Literal["pandas"]) -> pd.DataFrame: ...


def load_attributions(
    folder: str | Path, kind: Literal["records", "dataset", "pandas"] = "records"
) -> Iterator[dict[str, Any]] | datasets.Dataset | pd.DataFrame:
    """Reads the attributions that a run has written, also one that is not finished.

    Args:
        folder: A run's output folder.
        kind: `records` yields one dict a contrast, as in the batch files, with the file's `layers`, `component`
            and `rule` beside and each kind of `scores` as a float64 array of layers × tokens. `dataset` and
            `pandas` have a row a contrast, with the scores as nested lists.

    Raises:
        UserError: The folder is not one of lit-attr's, or of a newer version, or a file in it is not what its
            format says: shapes, or a number that is not finite.
    """
    path = Path(folder)
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{path}: there is no manifest.json in it; give the output folder of a run")
    check_header(read_json(manifest), manifest, MANIFEST_FORMAT)
    records = _records(OutputFolder(path))
    if kind == "records":
        return records
    rows = [_with_lists(record) for record in records]
    if kind == "pandas":
        import pandas as pd

        return pd.DataFrame(rows)
    # Imported here: it takes most of a second.
    import datasets

    return datasets.Dataset.from_list(rows)


def _records(folder: OutputFolder) -> Iterator[dict[str, Any]]:
    for _, batch in folder.read_batches():
        shared = {name: batch[name] for name in ("layers", "component", "rule")}
        for example in batch["examples"]:
            yield {**example, **shared}


def _with_lists(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "scores": {kind: scores_LT.tolist() for kind, scores_LT in record["scores"].items()}}
