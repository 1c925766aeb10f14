"""Files are written atomically: a reader sees the complete file or none."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.core.errors import AxzooError
from axzoo.core.files import atomic_path, canonical_json, read_json, write_bytes, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_success_makes_the_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("whole")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert target.read_text() == "whole"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_failure_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "file"
    for before in (None, "old"):
        if before:
            target.write_text(before)
        with pytest.raises(failure), atomic_path(target) as temporary:
            temporary.write_text("half")
            raise failure
        assert [path.name for path in tmp_path.iterdir()] == (["file"] if before else [])
    assert target.read_text() == "old"


def test_a_target_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """A device such as /dev/full is not replaced either."""
    os.mkfifo(tmp_path / "x")
    with pytest.raises(AxzooError, match="x exists and is not a regular file: choose another path"):
        write_bytes(tmp_path / "x", b"data")
    assert (tmp_path / "x").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_block_may_remove_its_temporary_file_and_fail(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file") as temporary:
        temporary.unlink()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "")
        assert os.umask(umask) == umask  # unchanged
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def _write_often(path: Path, letter: str) -> None:
    for _ in range(100):
        write_bytes(path, letter.encode() * 50_000)


def test_many_writers_and_a_reader(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_text(target, "a")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(target, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(set(target.read_bytes())) == 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@given(value=JSON)
def test_canonical_json_does_not_depend_on_key_order(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(_reversed(value)) == text


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


def test_json_format(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": "é", "a": [1]})
    assert path.read_text() == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'
    assert read_json(path) == {"a": [1], "b": "é"}
    assert canonical_json({"b": "é", "a": [1]}) == '{"a":[1],"b":"é"}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("x")])
def test_values_json_cannot_represent_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "x.json", value)
    assert not list(tmp_path.iterdir())


NOT_JSON = {
    "empty": b"",
    "cut off": b"{",
    "not text": b"\xff\xfe\0",
    "two values": b'{"a": 1} x',
    "deep": b"[" * 100_000,
    "a huge number": b"1" * 5000,
    "half a surrogate": b'{"a": "\\ud800',
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_invalid_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(AxzooError, match="is not valid JSON") as error:
        read_json(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_large_one(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"x\.json is missing"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[" + " " * 100 + "]")
    assert read_json(tmp_path / "x.json", limit=102) == []
    with pytest.raises(AxzooError, match="has 102 bytes, but at most 101 are plausible"):
        read_json(tmp_path / "x.json", limit=101)
