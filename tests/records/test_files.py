"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_attr.records.files import read_sealed, remove_temporary, sealed, write_bytes, write_first


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.json", b"old")]


@pytest.mark.parametrize("has_links", [True, False])
def test_the_first_of_several_writers_wins_and_no_other_file_stays(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    if not has_links:
        monkeypatch.setattr("os.link", refuse)
    path = tmp_path / "a.json"
    write_first(path, sealed({"format": "first", "version": 2}))
    write_first(path, sealed({"format": "second", "version": 2}))
    assert read_sealed(path, "first")["format"] == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_first_writer_leaves_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def kill(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("os.link", kill)
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            write_first(tmp_path / "a.json", b"{}")
    assert len([*tmp_path.iterdir()]) == 1
    remove_temporary(tmp_path)
    assert [*tmp_path.iterdir()] == []
