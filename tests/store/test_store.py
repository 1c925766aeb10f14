"""The store finds, adds and links entries, and never links a damaged one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.store import Entry, Store, content_key, link

KEY = content_key({"a": 1})


def _write_hello(file: BinaryIO) -> Mapping[str, Any]:
    file.write(b"hello")
    return {"errors": {"q": 0.5}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_keys_depend_on_the_contents() -> None:
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert len(KEY) == 64
    different: list[dict[str, Any]] = [{}, {"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": [1]}, {"a": 1, "b": None}]
    assert len({content_key(value) for value in different}) == len(different)


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers(), max_size=3), min_size=2, max_size=5))
def test_different_contents_have_different_keys(values: list[dict[str, Any]]) -> None:
    unique = [value for index, value in enumerate(values) if value not in values[:index]]
    assert len({content_key(value) for value in values}) == len(unique)


def test_an_added_entry_is_found(store: Store, tmp_path: Path) -> None:
    assert store.find(KEY) is None
    added = store.add(KEY, _write_hello)
    found = Store(tmp_path / "store").find(KEY)
    assert found == added
    assert (added.path.read_bytes(), added.size, added.about) == (b"hello", 5, {"errors": {"q": 0.5}})
    assert added.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert store.find(content_key({"a": 2})) is None
    assert _files(tmp_path / "store") == [".lock", f"{KEY[:2]}/{KEY}", f"{KEY[:2]}/{KEY}.json"]


def test_a_failed_build_leaves_nothing(store: Store, tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> Mapping[str, Any]:
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.add(KEY, fail)
    assert store.find(KEY) is None
    assert not _files(tmp_path)


def _damages(path: Path) -> dict[str, Any]:
    receipt = path.with_name(path.name + ".json")
    return {
        "flipped byte": lambda: path.write_bytes(b"hellp"),
        "truncated": lambda: path.write_bytes(b"hell"),
        "emptied": lambda: path.write_bytes(b""),
        "data gone": path.unlink,
        "receipt gone": receipt.unlink,
        "receipt emptied": lambda: receipt.write_text(""),
        "receipt of nothing": lambda: receipt.write_text("{}"),
        "receipt a list": lambda: receipt.write_text("[]"),
        "receipt lies": lambda: receipt.write_text('{"sha256": "00", "size": 5, "about": {}}'),
        "receipt in half": lambda: receipt.write_bytes(receipt.read_bytes()[:40]),
    }


@pytest.mark.parametrize("damage", _damages(Path("x")).keys())
def test_a_damaged_entry_is_rebuilt(store: Store, tmp_path: Path, damage: str) -> None:
    path = store.add(KEY, _write_hello).path
    _damages(path)[damage]()
    assert store.find(KEY) is None
    again = store.add(KEY, _write_hello)
    assert store.find(KEY) == again
    link(again, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"hello"


def test_finding_damage_does_not_undo_another_processs_repair(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both processes see the damage, and the other one replaces the entry before this one has finished checking."""
    path = store.add(KEY, _write_hello).path
    path.write_bytes(b"damaged")
    real = hashlib.file_digest

    def slow(*arguments: Any) -> Any:
        digest = real(*arguments)
        monkeypatch.undo()
        Store(tmp_path / "store").add(KEY, _write_hello)
        return digest

    monkeypatch.setattr(hashlib, "file_digest", slow)
    assert store.find(KEY) is None
    found = store.find(KEY)
    assert found is not None
    assert found.path.read_bytes() == b"hello"


def test_an_entry_added_by_another_process_is_kept(store: Store, tmp_path: Path) -> None:
    """Two builds have both looked for the entry and not found it."""

    def slow(file: BinaryIO) -> Mapping[str, Any]:
        link(Store(tmp_path / "store").add(KEY, _write_hello), tmp_path / "theirs")
        return _write_hello(file)

    link(store.add(KEY, slow), tmp_path / "ours")
    assert (tmp_path / "ours").samefile(tmp_path / "theirs")
    assert (tmp_path / "ours").samefile(store.paths(KEY)[0])
    assert not [name for name in _files(tmp_path) if name.endswith(".part")]


def test_an_entry_damaged_in_the_meantime_is_replaced(store: Store, tmp_path: Path) -> None:
    def slow(file: BinaryIO) -> Mapping[str, Any]:
        Store(tmp_path / "store").add(KEY, _write_hello).path.write_bytes(b"hellp")
        return _write_hello(file)

    entry = store.add(KEY, slow)
    assert entry.path.read_bytes() == b"hello"
    assert store.find(KEY) == entry


def test_finding_an_entry_refreshes_its_mtime(store: Store) -> None:
    entry = store.add(KEY, _write_hello)
    data, receipt = store.paths(KEY)
    for path in (data, receipt):
        os.utime(path, (0, 0))
    assert store.find(KEY) == entry
    assert receipt.stat().st_mtime > 1e9
    assert data.stat().st_mtime == 0  # all bundles that link to it share this age


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_store_can_be_used(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    entry = store.add(KEY, _write_hello)

    original = os.open

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    def only_read(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(code, os.strerror(code))
        return original(path, flags, mode)

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "open", only_read)
    assert store.find(KEY) == entry


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_goes_on_without(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert store.add(KEY, _write_hello) == store.find(KEY)


def test_other_trouble_with_the_lock_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        store.add(KEY, _write_hello)
    assert store.find(KEY) is None


def test_link_is_a_hard_link_with_the_current_mtime(store: Store, tmp_path: Path) -> None:
    entry = store.add(KEY, _write_hello)
    os.utime(entry.path, (0, 0))
    link(entry, tmp_path / "bundle" / "file")
    there = (tmp_path / "bundle" / "file").stat()
    assert there.st_ino == entry.path.stat().st_ino
    assert there.st_mtime > 1e9
    assert stat.S_IMODE(there.st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("before", ["another file", "the same link", "a broken symlink"])
def test_link_replaces_an_existing_file(store: Store, tmp_path: Path, before: str) -> None:
    entry, target = store.add(KEY, _write_hello), tmp_path / "bundle" / "file"
    target.parent.mkdir()
    if before == "another file":
        target.write_text("old")
    elif before == "the same link":
        target.hardlink_to(entry.path)
    else:
        target.symlink_to(tmp_path / "nowhere")
    link(entry, target)
    assert target.read_bytes() == b"hello"
    assert not target.is_symlink()
    assert _files(target.parent) == ["file"]
    assert entry.path.stat().st_nlink == 2


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOENT])
def test_link_falls_back_to_a_copy(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    entry = store.add(KEY, _write_hello)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "bundle" / "file"
    target.parent.mkdir()
    target.write_text("old")
    link(entry, target)
    assert target.read_bytes() == b"hello"
    assert target.stat().st_ino != entry.path.stat().st_ino
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(entry.path.stat().st_mode)
    assert _files(target.parent) == ["file"]


def test_link_does_not_copy_on_a_full_disk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = store.add(KEY, _write_hello)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        link(entry, tmp_path / "bundle" / "file")
    assert not _files(tmp_path / "bundle")


def test_linking_a_missing_entry_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link(Entry(tmp_path / "gone", "", 0, {}), tmp_path / "file")
    assert not _files(tmp_path)
