"""Tables that are made, kept and found: the same contrasts, whoever makes them and wherever they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, disable_caching, enable_caching
from toys import word_tokenizer
from transformers import PreTrainedTokenizerBase

from lit_attr.errors import ArgumentError, UserError
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import Reading, read_facts
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.facts.table.building import build
from lit_attr.facts.table.cache import TableCache
from lit_attr.facts.table.contrast_table import ContrastTable
from lit_attr.facts.table.donors import with_donors
from lit_attr.facts.table.parts import Making
from lit_attr.facts.table.preparing import Caching, Source, prepare
from lit_attr.facts.tokenization import build_contrasts

ROWS = [{**row, "id": row.get("id", at)} for at, row in enumerate(open_rows(SAMPLE))]
# Two that are refused while rows are read, one that is refused when it is tokenised.
BROKEN = [
    {**ROWS[0], "id": "x", "subject": None},
    {**ROWS[1], "id": ROWS[1]["id"]},
    {**ROWS[2], "id": "y", "prompt": ROWS[2]["prompt"] + " so" * 80},
]
SOME = [*ROWS[:90], *BROKEN, *ROWS[90:200]]
EVERY_ROW = Reading()


def made(
    rows: Any,
    folder: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reading: Reading = EVERY_ROW,
    source: object = None,
    said: list[str] | None = None,
    workers: int = 1,
    **making: Any,
) -> Any:
    caching = Caching(str(folder), folder is None, workers, small_rows=0, small_bytes=0)
    opened: Callable[[], Any] = rows if callable(rows) else lambda: rows
    found = Source.of(source, opened, reading, caching)
    lines: list[str] = [] if said is None else said
    return prepare(found, Making(tokenizer, max_tokens=64, **making), caching, lines.append)


def expected(tokenizer: PreTrainedTokenizerBase, rows: Any = SOME, **settings: Any) -> list[Contrast]:
    contrasts, _ = build_contrasts(read_facts(rows).facts, tokenizer, max_tokens=64, **settings)
    return contrasts


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("step", ["divergence", "all"])
def test_a_table_has_the_contrasts_of_its_rows(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, workers: int, step: Any
):
    memory = made(SOME, None, tokenizer, step=step)
    kept = made(SOME, tmp_path, tokenizer, step=step, workers=workers)
    assert memory.contrasts == kept.contrasts == expected(tokenizer, step=step)
    assert memory.rejected == kept.rejected
    assert [*dict.fromkeys(each.row for each in kept.rejected)] == [90, 91, 92]
    assert memory.contrasts.content() == kept.contrasts.content() == ContrastTable.of([*kept.contrasts]).content()
    assert (memory.contrasts.random_order(0) == kept.contrasts.random_order(0)).all()
    (folder,) = (each for each in (tmp_path / "lit_attr").iterdir() if each.is_dir())
    assert {each.name for each in folder.iterdir()} == {"table.arrow", "about.json", "order-0.npy"}
    # Whoever uses `datasets` can open it.
    assert len(Dataset.from_file(str(folder / "table.arrow"))) == len(kept.contrasts)


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_make_one_table(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, workers: int):
    batches: list[Any] = []
    making = Making(tokenizer, max_tokens=64)
    built = build(Reading().each(SOME), making, batches.append, folder=tmp_path, workers=workers, facts_a_part=17)
    table = ContrastTable(batches, content=built.content, orders={0: built.order_M})
    assert table == expected(tokenizer)
    assert table.lengths_N.tolist() == sorted(table.lengths_N.tolist(), reverse=True)
    assert built.content == ContrastTable.of([*table]).content()
    assert table.at(table.random_order(0)) == table.at(ContrastTable(batches).random_order(0))


def donors_of(rows: Any, limit: int, folder: Path | None) -> Any:
    reading = Reading(with_donors=True, limit=limit)
    return made(rows, folder, word_tokenizer(), reading=reading, has_donors=True, seed=3)


def test_donors_are_those_of_lists_of_contrasts(tmp_path: Path):
    countries = ["Spain", "Orleans", "Paris", "Costa", "Rica", "Madrid", "Rome"]
    answers = ["Madrid", "Rome", "Paris", "Orleans"]
    rows = [
        {
            "relation": "The capital of {} is",
            "subject": f"New {country} City" if at % 3 else country,
            "target_true": answers[at % 4],
            "target_false": answers[(at // 4 + at + 1) % 4 if (at // 4 + 1) % 4 else (at + 1) % 4],
            "id": f"row {at}" if at % 2 else at,
        }
        for at, country in enumerate(countries * 6)
    ]
    for limit in (10, 100):
        table = read_facts(rows, limit=limit, with_donors=True)
        own, _ = build_contrasts(table.facts, word_tokenizer(), max_tokens=64)
        ids = {fact.id for fact in table.facts}
        others, _ = build_contrasts([each for each in table.pool.values() if each.id not in ids], word_tokenizer())
        given, rejected = with_donors(own, others, seed=3)
        assert given
        for folder in (None, tmp_path):
            found = donors_of(rows, limit, folder)
            assert found.contrasts == given
            assert found.rejected == sorted(rejected)
            assert found.contrasts.content() == ContrastTable.of(given).content()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:50]))
    return path


def test_a_second_run_reads_no_row(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, path: Path):
    said: list[str] = []
    first = made(lambda: open_rows(str(path)), tmp_path, tokenizer, source=str(path), said=said)
    (line,) = said
    assert line.startswith("The rows are tokenised by 1 processes into") and str(tmp_path) in line

    def broken() -> Iterator[Mapping[str, Any]]:
        raise AssertionError("rows were read")
        yield {}

    again = made(broken, tmp_path, tokenizer, source=str(path), said=said)
    assert again.contrasts == first.contrasts and len(said) == 1


def test_whatever_changes_contrasts_changes_the_fingerprint(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, path: Path
):
    def names() -> int:
        return len([each for each in (tmp_path / "lit_attr").iterdir() if each.is_dir()])

    def of_file(**settings: Any) -> None:
        made(lambda: open_rows(str(path)), tmp_path, tokenizer, source=str(path), **settings)

    settings: list[dict[str, Any]] = [
        {},
        {"step": "all"},
        {"add_bos_token": False},
        {"reading": Reading(limit=20)},
        {"reading": Reading(relation_ids=["P36"])},
        {"reading": Reading(answer_separator="")},
        {"reading": Reading(with_donors=True), "has_donors": True},
        {"reading": Reading(with_donors=True), "has_donors": True, "seed": 1},
    ]
    for count, each in enumerate(settings, 1):
        of_file(**each)
        assert names() == count
        of_file(**each)
        assert names() == count
    # Without donors, a seed is that of an order alone.
    of_file(seed=1)
    assert names() == len(settings)
    made(lambda: open_rows(str(path)), tmp_path, word_tokenizer(), source=str(path))
    assert names() == len(settings) + 1
    path.write_text(path.read_text().replace("is", "was", 1))
    of_file()
    assert names() == len(settings) + 2


def test_rows_of_every_kind_are_found_again(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    rows = [{name: value for name, value in row.items() if name != "id"} for row in ROWS[:30]]
    for kind in (lambda: rows, lambda: iter(rows), lambda: Dataset.from_list(rows)):
        said: list[str] = []
        first = made(kind, tmp_path, tokenizer, said=said)
        assert made(kind, tmp_path, tokenizer, said=said).contrasts == first.contrasts == expected(tokenizer, rows)
        # A data set has the fingerprint of `datasets`, other rows that of their content.
        assert len(said) <= 1
    changed = [*rows[:-1], {**rows[-1], "target_false": "Timbuktu"}]
    assert made(changed, tmp_path, tokenizer).contrasts[-1].fact.target_false == " Timbuktu"
    changed_set = Dataset.from_list(changed)
    assert made(changed_set, tmp_path, tokenizer).contrasts[-1].fact.target_false == " Timbuktu"


@pytest.mark.parametrize("damage", ["cut", "no table", "no list", "bad list", "temporary"])
def test_what_is_not_whole_is_made_again(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, damage: str):
    first = made(SOME, tmp_path, tokenizer)
    place = first.contrasts._path.parent
    table, about = place / "table.arrow", place / "about.json"
    if damage == "cut":
        table.write_bytes(table.read_bytes()[:-500])
    elif damage == "no table":
        table.unlink()
    elif damage == "no list":
        about.unlink()
    elif damage == "bad list":
        about.write_text("{}")
    else:
        place.rename(place.with_name(f".{place.name}.77.tmp"))
    said: list[str] = []
    assert made(SOME, tmp_path, tokenizer, said=said).contrasts == expected(tokenizer)
    assert len(said) == 1
    assert not [*place.parent.glob(".*")]


def test_nothing_is_kept_where_the_user_does_not_want_it(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    disable_caching()
    try:
        assert made(SOME, tmp_path, tokenizer).contrasts == expected(tokenizer)
    finally:
        enable_caching()
    assert not [*tmp_path.iterdir()]


def test_without_a_place_to_write_rows_are_in_memory(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    assert made(SOME, tmp_path / "file" / "cache", tokenizer).contrasts == expected(tokenizer)
    assert caplog.messages == [
        f"cache_dir: {tmp_path}/file/cache/lit_attr cannot be written to (Not a directory), so each process "
        "tokenises all rows in memory; give a folder that can be written to"
    ]


CODE = """
import resource, sys
sys.path.insert(0, {support!r})
from lit_attr.datamodule import CounterfactDataModule, DataRequirements
from lit_attr.facts.table.preparing import Caching
from lit_attr.models.loading import DEMO_MODEL
import pyarrow, datasets
if {size}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
data = CounterfactDataModule({path!r}, cache_dir={cache!r}, num_proc=2)
data.caching = data.caching._replace(small_bytes=0)
print("ready", flush=True)
data.make_contrasts(DataRequirements(tokenizer=DEMO_MODEL))
print(len(data.contrasts), flush=True)
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Rows that take a few seconds."""
    path = tmp_path / "many.jsonl"
    with path.open("w") as stream:
        for turn in range(30):
            for at, row in enumerate(ROWS):
                stream.write(json.dumps({**row, "id": turn * 1000 + at}) + "\n")
    return path


def start(path: Path, cache: Path, size: int = 0) -> subprocess.Popen[str]:
    code = CODE.format(
        support=str(Path(__file__).parents[2] / "support"), path=str(path), cache=str(cache), size=size
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def children_of(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_process_keeps_nobody_waiting(many: Path, tmp_path: Path):
    first = start(many, tmp_path / "cache")
    deadline = time.monotonic() + 240
    while not (workers := children_of(first.pid)):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    second, third = (start(many, tmp_path / "cache") for _ in range(2))
    for process in (second, third):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    for process in (second, third):
        # Not `communicate`, which leaves out what `readline` has buffered.
        assert process.stdout is not None and process.stderr is not None
        printed, error = process.stdout.read(), process.stderr.read()
        process.wait(240)
        assert printed == f"{30 * len(ROWS)}\n", (process.returncode, error)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    (kept,) = (each for each in (tmp_path / "cache" / "lit_attr").iterdir() if each.is_dir())
    assert not kept.name.startswith(".")


def test_a_full_disk_ends_in_one_line(path: Path, tmp_path: Path):
    process = start(path, tmp_path / "cache", size=4096)
    _, error = process.communicate(timeout=240)
    assert process.returncode
    place, limit = f"{tmp_path}/cache/lit_attr", "File too large"
    words = (
        f"ArgumentError: data.cache_dir: {place} has no space left for tokenised rows ({limit}); free some there"
    )
    assert words in error.strip().splitlines()[-1]
    left = [each.name for each in (tmp_path / "cache" / "lit_attr").iterdir()]
    assert all(name.endswith(".lock") for name in left)


def test_a_worker_that_is_killed_ends_in_one_line(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    class Deadly:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: Any, **settings: Any) -> Any:
            if os.getpid() != own:
                os.kill(os.getpid(), signal.SIGKILL)
            return tokenizer(texts, **settings)

    own = os.getpid()
    with pytest.raises(
        ArgumentError, match=r"^num_proc: a process that tokenises rows was ended, with status -9; g"
    ):
        made(SOME, tmp_path, Deadly(), workers=2)  # type: ignore[arg-type]
    assert not [*(tmp_path / "lit_attr").glob(".*.tmp")]


def test_errors_of_workers_and_of_rows_leave_nothing_behind(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    def rows() -> Iterator[Mapping[str, Any]]:
        yield from ROWS[:50]
        raise UserError("rows.csv, line 3: not CSV")

    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UserError, match="line 3"):
        made(rows, tmp_path, tokenizer, source=str(path), workers=2)
    tokenizer_without = word_tokenizer()
    tokenizer_without.bos_token = None
    with pytest.raises(ArgumentError, match="^add_bos_token: "):
        made(ROWS, tmp_path, tokenizer_without, add_bos_token=True)
    assert not [each for each in (tmp_path / "lit_attr").iterdir() if each.is_dir()]


def test_a_table_that_another_user_made_is_read(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    first = made(SOME, tmp_path, tokenizer)
    place = first.contrasts._path.parent
    shutil.rmtree(place.parent.with_name("copy"), ignore_errors=True)
    cache = TableCache(place.parent)
    found = cache.find(place.name)
    assert found is not None and found.contrasts == first.contrasts
    assert cache.find("absent") is None
