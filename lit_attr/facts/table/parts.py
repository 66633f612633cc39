"""Parts of a table: a few thousand facts, tokenised in this process or in several beside it."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from lit_attr.errors import ArgumentError
from lit_attr.facts.contrasts import Contrast, Step, order_key
from lit_attr.facts.rows import Read, Rejected
from lit_attr.facts.table.columns import BATCH_ROWS, CONTRAST_SCHEMA, encode_contrasts, id_columns
from lit_attr.facts.table.donors import HASHES, features_of
from lit_attr.facts.tokenization import build_contrasts, have_spaces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# One to three seconds of work. What a process has in memory at once grows with it.
FACTS_A_PART = 8192
ORDER_BYTES = 32
# What a traceback is cut to, so that it fits into a pipe that nobody reads yet.
MAX_TRACEBACK = 8000

# What is needed until the table is whole.
_FOR_ALL = [
    # The place of a contrast among those of its part, in the order of the source.
    ("place", pa.int32()),
    # What its part of the hash in the run's identity is made of.
    ("content", pa.large_binary()),
    # Its hash in the run's random order.
    ("order", pa.binary(ORDER_BYTES)),
    # Whether a space was added before an answer.
    ("has_space", pa.bool_()),
]
_FOR_DONORS = [
    ("named_number", pa.int64()),
    ("named_text", pa.string()),
    *((f"{name}_hash", pa.binary(size)) for name, size in HASHES.items()),
]


class Making(NamedTuple):
    """How contrasts are made of facts.

    Attributes:
        tokenizer: See `build_contrasts`, as the next three.
        step: At which step answers are compared.
        add_bos_token: Whether the beginning-of-sequence token comes first.
        max_tokens: How many tokens a contrast may have.
        seed: Seed of the run's random order, and of the choice of donors.
        has_donors: Whether contrasts get donors.
        by_name: Whether rows name them.
    """

    tokenizer: PreTrainedTokenizerBase
    step: Step = "divergence"
    add_bos_token: bool | None = None
    max_tokens: int | None = None
    seed: int = 0
    has_donors: bool = False
    by_name: bool = False


class Part(NamedTuple):
    """The contrasts of some facts, those with the most tokens first, otherwise in the order of the source.

    Attributes:
        batches: The contrasts. All but the last have `BATCH_ROWS` rows.
        rejected: Why there are not more.
    """

    batches: list[pa.RecordBatch]
    rejected: list[Rejected]


def make_part(reads: Sequence[Read], making: Making) -> Part:
    """Tokenises facts.

    Raises:
        ArgumentError: See `build_contrasts`.
    """
    contrasts: list[Contrast] = []
    rejected: list[Rejected] = []
    spaces: list[bool] = []
    for begin in range(0, len(reads), BATCH_ROWS):
        _leave_if_orphaned()
        facts = [read.fact for read in reads[begin : begin + BATCH_ROWS] if read.fact is not None]
        made, refused = build_contrasts(
            facts,
            making.tokenizer,
            step=making.step,
            add_bos_token=making.add_bos_token,
            max_tokens=making.max_tokens,
        )
        contrasts += made
        rejected += refused
        spaces += have_spaces(facts, made)
    named = {read.fact.id: read.donor_id for read in reads if read.fact is not None}
    order = sorted(range(len(contrasts)), key=lambda place: -len(contrasts[place].token_ids))
    batches = []
    for begin in range(0, len(order), BATCH_ROWS):
        places = order[begin : begin + BATCH_ROWS]
        some = [contrasts[place] for place in places]
        columns = [
            pa.array(places, pa.int32()),
            pa.array(map(content_of, some), pa.large_binary()),
            pa.array([order_key(each.key, making.seed) for each in some], pa.binary(ORDER_BYTES)),
            pa.array([spaces[place] for place in places], pa.bool_()),
        ]
        if making.has_donors:
            numbers, texts = id_columns([named[each.fact.id] for each in some])
            columns += [pa.array(numbers, pa.int64()), pa.array(texts, pa.string())]
            features = [features_of(each, making.seed) for each in some]
            for at, size in enumerate(HASHES.values()):
                columns.append(pa.array([each[at] for each in features], pa.binary(size)))
        encoded = encode_contrasts(some)
        batches.append(pa.RecordBatch.from_arrays([*encoded.columns, *columns], schema=part_schema(making)))
    return Part(batches, rejected)


def content_of(contrast: Contrast) -> bytes:
    """What a contrast without its donor asks of the model, for a hash."""
    compared = contrast.true_token_id, contrast.false_token_id
    # The relation matters for the choice of the donor alone, and the donor is hashed as well.
    fact = contrast.fact._replace(relation="")
    return repr((fact, contrast.step, contrast.token_ids, compared)).encode()


def part_schema(making: Making) -> pa.Schema:
    """The columns of a part."""
    fields = [*_FOR_ALL, *(_FOR_DONORS if making.has_donors else [])]
    return pa.schema([*CONTRAST_SCHEMA, *(pa.field(name, kind) for name, kind in fields)])


def make_parts(
    chunks: Iterable[Sequence[Read]],
    making: Making,
    folder: Path | None = None,
    *,
    prefix: str = "part",
    workers: int = 1,
) -> Iterator[Part]:
    """Tokenises the facts of each chunk.

    Args:
        chunks: The facts; read while others are tokenised.
        making: How contrasts are made of them.
        folder: Where parts are kept; None to keep them in memory.
        prefix: What the names of the parts' files begin with.
        workers: How many processes tokenise; those beside this one need a folder.

    Raises:
        ArgumentError: See `build_contrasts`; or a process was killed, as a fault of `num_proc`.
        OSError: A part cannot be written.
    """
    # What is wrong with the tokenizer shows at once.
    make_part([], making)
    paths = (folder / f"{prefix}-{number:06d}" for number in count()) if folder is not None else None
    if paths is None or workers < 2 or not can_fork():
        for chunk in chunks:
            part = make_part(chunk, making)
            if paths is not None:
                path = next(paths)
                _write_part(path, part, making)
                part = _read_part(path)
            yield part
        return
    running: deque[_Worker] = deque()
    try:
        for chunk in chunks:
            while len(running) >= workers:
                yield running.popleft().finish()
            running.append(_Worker(next(paths), chunk, making))
        while running:
            yield running.popleft().finish()
    finally:
        for worker in running:
            worker.end()


def can_fork() -> bool:
    """Whether this process can have others beside it that share its memory."""
    # A copy of this process needs no import, runs no script of the user's again, and gets facts for nothing.
    return os.name == "posix" and os.uname().sysname == "Linux" and not multiprocessing.current_process().daemon


class _Worker:
    """A process that makes one part.

    Args:
        path: Where the part is kept.
        reads: The facts.
        making: How contrasts are made of them.
    """

    def __init__(self, path: Path, reads: Sequence[Read], making: Making) -> None:
        self._path = path
        context = multiprocessing.get_context("fork")
        self._received, sent = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_work, args=(path, reads, making, sent, os.getpid()), daemon=True
        )
        with warnings.catch_warnings():
            # Of threads, which the copy has not: it runs only Python, Arrow and the tokenizer, without theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        sent.close()

    def finish(self) -> Part:
        """Waits for the part."""
        try:
            failure = self._received.recv()
        except EOFError:
            self._process.join()
            failure = f"a process that tokenises rows was ended, with status {self._process.exitcode}"
            reason = f"{failure}; give fewer where the memory does not suffice, or 1"
            raise ArgumentError("num_proc", reason) from None
        finally:
            self.end()
        if isinstance(failure, OSError):
            raise failure
        if failure is not None:
            raise RuntimeError(f"in a process that tokenises rows:\n{failure}")
        return _read_part(self._path)

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._received.close()


_parent: int | None = None


def _work(path: Path, reads: Sequence[Read], making: Making, sent: Connection, parent: int) -> None:
    global _parent
    _parent = parent
    # The process that started this one handles them for both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A copy of its own of all that the collector looks at would take memory.
    gc.freeze()
    # Threads of the tokenizer are not in this copy.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        _write_part(path, make_part(reads, making), making)
        sent.send(None)
    except OSError as error:
        sent.send(OSError(error.errno, error.strerror or str(error), str(path)))
    except BaseException:
        sent.send(traceback.format_exc()[-MAX_TRACEBACK:])


def _leave_if_orphaned() -> None:
    """Ends a process whose parent was killed: others wait for the lock of the table, which it has inherited."""
    if _parent is not None and os.getppid() != _parent:
        os._exit(1)


def _write_part(path: Path, part: Part, making: Making) -> None:
    with (
        pa.OSFile(str(path.with_suffix(".arrow")), "wb") as sink,
        pa.ipc.new_file(sink, part_schema(making)) as writer,
    ):
        for batch in part.batches:
            writer.write_batch(batch)
    # Python's JSON, unlike others, keeps the lone surrogates that ids of refused rows may have.
    path.with_suffix(".json").write_text(json.dumps(part.rejected))


def _read_part(path: Path) -> Part:
    reader = pa.ipc.open_file(pa.memory_map(str(path.with_suffix(".arrow"))))
    rejected = [Rejected(*each) for each in json.loads(path.with_suffix(".json").read_text())]
    return Part([reader.get_batch(at) for at in range(reader.num_record_batches)], rejected)
