"""Paths of any bytes, machines without UTF-8, and files that hold far more than they seem to."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts import sources
from lit_attr.facts.sources import MAX_LINE_BYTES, open_rows

ROW = {
    "prompt": "The capital of Côte d'Ivoire is",
    "subject": "Côte d'Ivoire",
    "target_true": "A",
    "target_false": "B",
}
# The settings of a machine that knows no UTF-8, also where Python would help itself.
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def refusal(source: str) -> str:
    with pytest.raises(UserError) as refused:
        list(open_rows(source))
    assert str(refused.value).isprintable()
    return str(refused.value)


def bomb(path: Path, begin: bytes, filling: bytes, gibibytes: float) -> Path:
    """A file of members that each hold 64 MiB: the whole is read as one text."""
    member = gzip.compress(filling * (2**26 // len(filling)), 1)
    with path.open("wb") as stream:
        stream.write(gzip.compress(begin))
        for _ in range(int(gibibytes * 16)):
            stream.write(member)
    return path


MEASURED = """
import sys
from pathlib import Path
from lit_attr.errors import UserError
from lit_attr.facts.sources import open_rows
try:
    print(len(list(open_rows(sys.argv[1]))))
except UserError as error:
    print(error)
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize(
    ("name", "begin", "filling", "where"),
    [
        ("facts.jsonl.gz", b'{"prompt": "', b"x", "line 1: more than 16 MiB"),
        ("facts.jsonl.gz", b'{"a": 1}\n{"prompt": "', b"x", "line 2: more than 16 MiB"),
        ("facts.csv.gz", b"a,b\n1,2\n3,", b"x", "line 3: more than 16 MiB"),
        ("facts.csv.gz", b'a,b\n1,2\n3,"', b"line\n", "line 3: the row that begins there: more than 16 MiB"),
        ("facts.csv.gz", b"", b"x", "line 1: more than 16 MiB"),
    ],
)
def test_a_small_file_with_one_huge_row_is_refused_in_bounded_memory(
    tmp_path: Path, name: str, begin: bytes, filling: bytes, where: str
):
    path = bomb(tmp_path / name, begin, filling, 3)
    assert path.stat().st_size < 2**25
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True)
    line, megabytes = done.stdout.splitlines()
    assert line.startswith(f"{path}, {where}; the file is not what its name says")
    assert int(megabytes) < 250
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("name", "begin", "filling"),
    [
        ("facts.json.gz", b'["', b"x"),
        ("facts.json.gz", b"[1,\n", b"1,\n"),
        ("facts.parquet.gz", b"PAR1", b"\0"),
    ],
)
def test_what_is_read_as_a_whole_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, begin: bytes, filling: bytes
):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 2**21)
    path = bomb(tmp_path / name, begin, filling, 0.25)
    assert "more than 2 MiB" in refusal(str(path))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_long_rows_within_the_bound_are_read_with_any_line_end(tmp_path: Path, end: str, packed: str):
    # Lines end before, at and after the borders of the blocks that are read at once.
    lengths = [2**20 - 10, 2**20 - 9, 2**20 - 8, 2**21, 5, MAX_LINE_BYTES - 20]
    rows = [{"a": "x" * length} for length in lengths]
    path = tmp_path / f"facts.jsonl{packed}"
    content = "".join(json.dumps(row) + end for row in rows).encode()
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    assert [len(row["a"]) for row in open_rows(str(path))] == lengths


def test_the_bound_is_of_a_row_not_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 2**10)
    path = tmp_path / "facts.csv"
    path.write_text("a,b\n" + '1,"x\ny"\n' * 10_000)
    assert sum(1 for _ in open_rows(str(path))) == 10_000


def test_a_path_with_nul_is_refused_in_one_line():
    for source in ("a\0b.jsonl", "a\0b", "\0", "/a\0/b.csv.gz"):
        assert "has a NUL character in it; check the path" in refusal(source)


@pytest.fixture
def latin_path(tmp_path: Path) -> str:
    """A file whose name is not UTF-8, as Python holds it."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")
    try:
        Path(path).write_text(json.dumps(ROW))
    except OSError:
        pytest.skip("this file system has no such names")
    return path


def test_a_file_whose_name_is_not_utf8_is_read(latin_path: str, tokenizer: PreTrainedTokenizerBase):
    data = CounterfactDataModule(latin_path, tokenizer)
    data.setup()
    assert len(data.contrasts) == 1
    # The manifest is UTF-8.
    assert json.dumps(data.identity(), ensure_ascii=False).encode()
    assert data.identity()["source"].endswith("/caf\\udce9.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".csv.gz", ".parquet", ""])
def test_a_file_whose_name_is_not_utf8_is_named_in_one_line(tmp_path: Path, suffix: str):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + suffix.encode())
    assert "/caf\\udce9" in refusal(path)
    try:
        Path(path).write_text("[" * 9)
    except OSError:
        pytest.skip("this file system has no such names")
    assert "/caf\\udce9" in refusal(path)


def predict(source: bytes, output: Path, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    words = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    words += ["--model.verify", "0", "--writer.output_dir", str(output)]
    return subprocess.run(
        [sys.executable, "-m", "lit_attr", "predict", "--data.source", source, *words],
        capture_output=True,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("name", "env"),
    [(b"caf\xe9", {}), pytest.param("東京".encode(), PLAIN, marks=pytest.mark.slow)],
    ids=["not UTF-8", "UTF-8 in the locale C"],
)
def test_a_run_reads_a_file_of_any_name_on_any_machine(
    tmp_path: Path, latin_path: str, name: bytes, env: dict[str, str]
):
    source = os.fsencode(Path(latin_path).parent) + b"/" + name + b".jsonl"
    Path(os.fsdecode(source)).write_text(json.dumps(ROW, ensure_ascii=False), encoding="utf-8")
    done = predict(source, tmp_path / "out", env)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    (path,) = (tmp_path / "out").glob("batches/*.json")
    assert json.loads(path.read_bytes())["examples"][0]["subject"] == "Côte d'Ivoire"


READ = """
import sys
from lit_attr.errors import UserError
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import open_rows
for name in sys.argv[1:] + ["\\u6771.jsonl", "\\u6771"]:
    try:
        print([ascii(fact.prompt) for fact in read_facts(open_rows(name)).facts])
    except UserError as error:
        print(ascii(str(error)))
"""


def test_without_utf8_files_are_read_as_utf8_all_the_same(tmp_path: Path):
    for name, content in (
        ("a.jsonl", json.dumps(ROW, ensure_ascii=False)),
        ("a.json", json.dumps([ROW], ensure_ascii=False)),
        ("a.csv", ",".join(ROW) + "\n" + ",".join(ROW.values())),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
    names = ["a.jsonl", "a.json", "a.csv"]
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", READ, *names],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **PLAIN},
        check=True,
    )
    *read, missing, other = done.stdout.splitlines()
    assert read == [str([ascii(ROW["prompt"])])] * 3
    assert "there is no file" in missing
    assert "no data set" in other or "neither a hub name" in other
