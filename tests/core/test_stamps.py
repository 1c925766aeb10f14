"""Digests of files are remembered by stamp."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from axzoo.core import stamps
from axzoo.core.files import sha256_of
from axzoo.core.stamps import Digests, Stamp, digest_of, recorded


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


def refuse(path: Path) -> str:
    raise AssertionError(f"{path} was read")


def test_a_stamp_is_in_a_record(file: Path) -> None:
    record = recorded(file)
    assert record["sha256"] == sha256_of(file)
    assert Stamp.from_dict(record) == Stamp.of(file)
    assert Stamp.from_dict({"sha256": "x", "size": 3}) is None
    assert Stamp.from_dict(record | {"inode": "1"}) is None


def test_every_write_changes_the_stamp(file: Path) -> None:
    before, stat = Stamp.of(file), file.stat()
    with file.open("r+") as opened:
        opened.write("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert before != Stamp.of(file)
    assert before._replace(changed_ns=0) == Stamp.of(file)._replace(changed_ns=0)


def test_a_known_stamp_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = file.with_name("digests.json")
    digests = Digests(memory)
    sha256 = digests.sha256(file)
    digests.save()
    monkeypatch.setattr(stamps, "sha256_of", refuse)
    assert digests.sha256(file) == Digests(memory).sha256(file) == sha256
    os.link(file, file.with_name("link"))  # changes the ctime
    with pytest.raises(AssertionError):
        Digests(memory).sha256(file)


def test_digests_in_receipts_are_not_written_again(file: Path) -> None:
    memory = file.with_name("digests.json")
    digests = Digests(memory)
    digests.learn(Stamp.of(file), "known")
    assert digests.sha256(file) == "known"
    digests.save()
    assert not memory.exists()


def test_links_made_in_a_block_do_not_cost_a_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = file.with_name("digests.json")
    digests = Digests(memory)
    sha256 = digests.sha256(file)
    unknown = shutil.copy(file, file.with_name("unknown"))
    with digests.unchanged([file, unknown, file.with_name("missing")]):
        os.link(file, file.with_name("link"))
    digests.save()
    monkeypatch.setattr(stamps, "sha256_of", refuse)
    assert Digests(memory).sha256(file) == sha256
    with pytest.raises(AssertionError):
        digests.sha256(unknown)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"file": 1}', '{"file": ["x", 1]}', '{"file": ["x", 1, 2, 3, "4"]}']
)
def test_a_damaged_memory_costs_only_time(file: Path, content: str) -> None:
    memory = file.with_name("digests.json")
    memory.write_text(content)
    assert Digests(memory).sha256(file) == sha256_of(file)


def test_digest_of_equal_values(file: Path) -> None:
    assert digest_of({"a": 1, "b": [None]}) == digest_of({"b": [None], "a": 1}) != digest_of({"a": 1, "b": []})
