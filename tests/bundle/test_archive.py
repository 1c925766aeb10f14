"""Packing and unpacking bundles: archives are reproducible, and archives not written by `pack` are rejected."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axzoo.bundle.archive import pack, unpack
from axzoo.bundle.completion import complete_bundle
from axzoo.bundle.manifest import MANIFEST
from axzoo.bundle.verification import deviations
from axzoo.core.errors import AxzooError
from tiny_model import Built

NAME = "tiny-w8a16"
POST = "llama_post.axmodel"


@pytest.fixture(scope="module")
def bundle(s8: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = s8.moved(tmp_path_factory.mktemp("packed") / NAME)
    complete_bundle(built.plan)
    return built.folder


@pytest.fixture(scope="module")
def packed(bundle: Path) -> Path:
    path = bundle.with_suffix(".tar")
    pack(bundle, path)
    return path


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pack_and_unpack(bundle: Path, packed: Path, tmp_path: Path) -> None:
    manifest = unpack(packed, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert manifest.name == NAME
    assert _contents(folder) == _contents(bundle)
    assert list(deviations(folder)) == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.axmodel")} == {0o644}
    assert stat.S_IMODE((folder / "run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert _names(tmp_path / "new") == ["folder"]


def test_equal_bundles_give_equal_bytes(bundle: Path, packed: Path, tmp_path: Path) -> None:
    """Independent of times, modes, owners and folder names, and of the order in which files were created."""
    other = tmp_path / "other-name"
    for name, data in sorted(_contents(bundle).items(), reverse=True):
        path = other / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
        os.utime(path, (1, 1))
    (other / "checks").mkdir()
    (other / "checks/layers.json").write_text("{}")  # accepted in a bundle, but not packed
    pack(other, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == packed.read_bytes()


def test_any_tar_program_can_unpack_it(bundle: Path, packed: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", packed, "-C", tmp_path], check=True)
    assert _contents(tmp_path / NAME) == _contents(bundle)
    assert os.access(tmp_path / NAME / "run.sh", os.X_OK)
    with tarfile.open(packed) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names[0] == f"{NAME}/{MANIFEST}"
    assert names[1:] == sorted(names[1:])
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.type) for m in members} == {(0, 0, "", "", 0, tarfile.REGTYPE)}


def test_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    with (damaged / POST).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(AxzooError, match=f"damaged does not match its manifest: {POST} has .* bytes"):
        pack(damaged, tmp_path / "x.tar")
    assert _names(tmp_path) == ["damaged"]


def test_file_that_changes_during_packing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changing = Path(shutil.copytree(bundle, tmp_path / "changing"))

    def change(folder: Path) -> None:
        data = (folder / POST).read_bytes()
        (folder / POST).write_bytes(data[:-1] + b"\xff")

    monkeypatch.setattr("axzoo.bundle.archive.require_intact", change)
    with pytest.raises(AxzooError, match=f"{POST} changed while it was being packed: verify the bundle"):
        pack(changing, tmp_path / "x.tar")
    assert _names(tmp_path) == ["changing"]


def test_archive_inside_its_own_bundle(bundle: Path) -> None:
    with pytest.raises(AxzooError, match="is inside the bundle: write the archive somewhere else"):
        pack(bundle, bundle / "tokenizer" / "x.tar")
    assert list(deviations(bundle)) == []


@pytest.mark.parametrize("kind", ["pipe", "link", "broken link", "folder"])
def test_output_that_is_not_a_regular_file_is_rejected(bundle: Path, tmp_path: Path, kind: str) -> None:
    """Such as /dev/full, /dev/stdout, and the user's symbolic links: they must remain unchanged."""
    output, target = tmp_path / "x.tar", tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(output)
    elif kind == "folder":
        output.mkdir()
    else:
        output.symlink_to(target)
        target.write_text("mine")
        if kind == "broken link":
            target.unlink()
    before = output.lstat()
    with pytest.raises(AxzooError, match=r"x\.tar exists and is not a regular file: choose another output"):
        pack(bundle, output)
    assert output.lstat() == before
    assert kind != "link" or target.read_text() == "mine"


def test_existing_archive_is_replaced(bundle: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("an earlier archive")
    pack(bundle, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == packed.read_bytes()


def test_target_that_exists(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    unpack(packed, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "file"):
        before = _contents(tmp_path)
        with pytest.raises(AxzooError, match=f"{name} exists: choose a new folder"):
            unpack(packed, tmp_path / name)
        assert _contents(tmp_path) == before


def test_too_little_disk_space(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 100))  # type: ignore[attr-defined]
    with pytest.raises(AxzooError, match=r"not enough disk space in .*: 0\.1 MB needed"):
        unpack(packed, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def _assert_rejected(data: bytes, folder: Path) -> None:
    """The archive is rejected, and no file is left behind, inside or outside the target's parent folder."""
    path = folder / "untrusted.tar"
    path.write_bytes(data)
    (folder / "below").mkdir(exist_ok=True)
    with pytest.raises(AxzooError) as error:
        unpack(path, folder / "below" / "target")
    assert "\n" not in str(error.value)
    assert _names(folder) == ["below", "untrusted.tar"]
    assert not _names(folder / "below")


def _members(packed: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(packed) as archive:
        members = [(member, archive.extractfile(member)) for member in archive.getmembers()]
        return [(member, file.read()) for member, file in members if file is not None]


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return data.getvalue()


Members = list[tuple[tarfile.TarInfo, bytes]]


def _info(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "", **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def _first(**fields: Any) -> Callable[[Members], None]:
    """Change the header of the first file after the manifest."""

    def change(members: Members) -> None:
        for key, value in fields.items():
            setattr(members[1][0], key, value)

    return change


def _insert(info: tarfile.TarInfo, at: int = 1) -> Callable[[Members], None]:
    return lambda members: members.insert(at, (info, b""))


def _longer(members: Members) -> None:
    info, content = members[1]
    info.size += 512
    members[1] = info, content + bytes(512)


FOREIGN_ARCHIVES: dict[str, Callable[[Members], None]] = {
    "absolute path": _first(name="/tmp/evil"),
    "path with ..": _first(name=f"{NAME}/../../evil"),
    "another folder": _first(name="other/config.json"),
    "symbolic link": _insert(_info(f"{NAME}/config.json", tarfile.SYMTYPE, "/etc/passwd")),
    "hard link": _insert(_info(f"{NAME}/config.json", tarfile.LNKTYPE, "/etc/passwd")),
    "device": _insert(_info(f"{NAME}/config.json", tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "pipe": _insert(_info(f"{NAME}/config.json", tarfile.FIFOTYPE)),
    "folder": _insert(_info(f"{NAME}/tokenizer", tarfile.DIRTYPE)),
    "folder first": _insert(_info(NAME, tarfile.DIRTYPE), at=0),
    "setuid": _first(mode=0o4755),
    "owner": _first(uid=1000),
    "time": _first(mtime=1),
    "longer than the manifest says": _longer,
    "duplicate file": lambda members: members.insert(2, members[1]),
    "duplicate manifest": lambda members: members.append(members[0]),
    "additional file": lambda members: members.append((_info(f"{NAME}/notes.txt"), b"")),
    "missing file": lambda members: members.__delitem__(3),
    "reversed order": lambda members: members.reverse(),
    "manifest last": lambda members: members.append(members.pop(0)),
    "empty": lambda members: members.clear(),
}


@pytest.mark.parametrize("case", FOREIGN_ARCHIVES)
def test_archive_not_written_by_pack_is_rejected(packed: Path, tmp_path: Path, case: str) -> None:
    members = _members(packed)
    FOREIGN_ARCHIVES[case](members)
    _assert_rejected(_tar(members), tmp_path)


def test_rebuilding_an_archive_from_its_members_gives_equal_bytes(packed: Path) -> None:
    """The archives in the other tests are therefore rejected because of what those tests change."""
    assert _tar(_members(packed)) == packed.read_bytes()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers(packed: Path, tmp_path: Path, form: int) -> None:
    members = _members(packed)
    members[1][0].name = f"{NAME}/{'x' * 300}"
    _assert_rejected(_tar(members, form), tmp_path)
    members.insert(0, (_info("x" * 300), b""))
    _assert_rejected(_tar(members, form), tmp_path)


def _with_manifest(packed: Path, change: Callable[[Any], None]) -> bytes:
    """The archive with a changed manifest, whose header matches it."""
    members = _members(packed)
    manifest = json.loads(members[0][1])
    change(manifest)
    data = json.dumps(manifest).encode()
    members[0][0].size = len(data)
    return _tar([(members[0][0], data), *members[1:]])


def _add_file(name: str) -> Callable[[Any], None]:
    record = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    return lambda manifest: manifest["files"].update({name: record})


FALSE_MANIFESTS: dict[str, Callable[[Any], None]] = {
    "file in the parent folder": _add_file("../evil"),
    "absolute path": _add_file("/tmp/evil"),
    "folder as file": _add_file("tokenizer"),
    "manifest lists itself": _add_file(MANIFEST),
    "name is ..": lambda manifest: manifest.update(name=".."),
    "other name": lambda manifest: manifest.update(name="other"),
    "size exceeds any disk": lambda manifest: manifest["files"]["run.sh"].update(size=1 << 60),
    "size exceeds tar's limit": lambda manifest: manifest["files"]["run.sh"].update(size=1 << 34),
    "size too small": lambda manifest: manifest["files"]["run.sh"].update(size=1),
    "size too large": lambda manifest: manifest["files"]["run.sh"].update(size=700),
    "other sha256": lambda manifest: manifest["files"]["run.sh"].update(sha256="0" * 64),
    "no files": lambda manifest: manifest.pop("files"),
}


@pytest.mark.parametrize("case", FALSE_MANIFESTS)
def test_archive_with_a_false_manifest_is_rejected(packed: Path, tmp_path: Path, case: str) -> None:
    _assert_rejected(_with_manifest(packed, FALSE_MANIFESTS[case]), tmp_path)


@pytest.mark.parametrize("data", [b"", b"x", bytes(512), bytes(10240), b"\xff" * 2048, b"not JSON" * 512])
def test_file_that_is_not_an_archive(tmp_path: Path, data: bytes) -> None:
    _assert_rejected(data, tmp_path)


def test_manifest_that_is_not_json(packed: Path, tmp_path: Path) -> None:
    members = _members(packed)
    for data in (b"{", b"[" * 100_000, b"\xff\xff", b"[]"):
        members[0][0].size = len(data)
        _assert_rejected(_tar([(members[0][0], data), *members[1:]]), tmp_path)


def test_message_about_an_invalid_manifest(packed: Path, tmp_path: Path) -> None:
    """It does not say "build it again", because the user may have no bundle to build."""
    path = tmp_path / "untrusted.tar"
    path.write_bytes(_with_manifest(packed, FALSE_MANIFESTS["no files"]))
    with pytest.raises(
        AxzooError, match=r"untrusted\.tar is damaged or was not written by `axzoo pack`: its manifest\.json is not"
    ):
        unpack(path, tmp_path / "target")


def test_oversized_manifest_is_not_read(packed: Path, tmp_path: Path) -> None:
    header = tarfile.TarInfo(f"{NAME}/{MANIFEST}")
    header.size, header.mode = 1 << 32, 0o644
    path = tmp_path / "untrusted.tar"
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 1 << 32)
    tracemalloc.start()
    with pytest.raises(AxzooError, match="was not written by `axzoo pack`: it does not start with the manifest"):
        unpack(path, tmp_path / "target")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_memory_is_bounded(packed: Path, bundle: Path, tmp_path: Path) -> None:
    """A file of 64 MB is packed and unpacked in chunks."""
    large = Path(shutil.copytree(bundle, tmp_path / "large"))
    manifest = json.loads((large / MANIFEST).read_text())
    with (large / "large.bin").open("wb") as file:
        file.truncate(64 << 20)
    with (large / "large.bin").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest["files"]["large.bin"] = {"size": 64 << 20, "sha256": digest}
    (large / MANIFEST).write_text(json.dumps(manifest))
    tracemalloc.start()
    pack(large, tmp_path / "large.tar")
    unpack(tmp_path / "large.tar", tmp_path / "again")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert list(deviations(tmp_path / "again")) == []


@pytest.mark.parametrize("cut", [1, 511, 512, 513, 5000, -1, -512, -10240])
def test_truncated_archive(packed: Path, tmp_path: Path, cut: int) -> None:
    _assert_rejected(packed.read_bytes()[:cut], tmp_path)


@pytest.mark.parametrize("more", [b"\0", bytes(512), bytes(10240), b"x"])
def test_archive_with_trailing_data(packed: Path, tmp_path: Path, more: bytes) -> None:
    _assert_rejected(packed.read_bytes() + more, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.data())
def test_every_changed_byte_is_rejected(packed: Path, tmp_path: Path, choose: st.DataObject) -> None:
    """Except in the manifest, which all other files are compared with."""
    data = bytearray(packed.read_bytes())
    manifest = range(512, 512 + len(_members(packed)[0][1]))
    at = choose.draw(st.integers(0, len(data) - 1).filter(lambda at: at not in manifest))
    data[at] ^= choose.draw(st.integers(1, 255))
    _assert_rejected(bytes(data), tmp_path)


def test_name_too_long_for_plain_tar(bundle: Path, tmp_path: Path) -> None:
    long = Path(shutil.copytree(bundle, tmp_path / "long"))
    manifest = json.loads((long / MANIFEST).read_text())
    manifest["name"] = "ü" * 150
    (long / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(AxzooError, match="exceeds the limits of plain tar, names up to 255 bytes and files up to 8 GB"):
        pack(long, tmp_path / "x.tar")
    assert _names(tmp_path) == ["long"]
