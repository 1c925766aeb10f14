"""Packing and unpacking: one form for one bundle, and nothing of a stranger's making."""

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


def test_there_and_back(bundle: Path, packed: Path, tmp_path: Path) -> None:
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
    """Whatever their ages, modes, owners and folder are, and the order their files were made in."""
    other = tmp_path / "other-name"
    for name, data in sorted(_contents(bundle).items(), reverse=True):
        path = other / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
        os.utime(path, (1, 1))
    (other / "checks").mkdir()
    (other / "checks/layers.json").write_text("{}")  # belongs to the bundle and is not packed
    pack(other, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == packed.read_bytes()


def test_any_tar_reads_it(bundle: Path, packed: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", packed, "-C", tmp_path], check=True)
    assert _contents(tmp_path / NAME) == _contents(bundle)
    assert os.access(tmp_path / NAME / "run.sh", os.X_OK)
    with tarfile.open(packed) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names[0] == f"{NAME}/{MANIFEST}"
    assert names[1:] == sorted(names[1:])
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.type) for m in members} == {(0, 0, "", "", 0, tarfile.REGTYPE)}


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    with (damaged / POST).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(AxzooError, match=f"damaged is not what its manifest says: {POST} has .* bytes"):
        pack(damaged, tmp_path / "x.tar")
    assert _names(tmp_path) == ["damaged"]


def test_a_file_that_changes_while_it_is_packed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changing = Path(shutil.copytree(bundle, tmp_path / "changing"))

    def then_change(folder: Path) -> None:
        data = (folder / POST).read_bytes()
        (folder / POST).write_bytes(data[:-1] + b"\xff")

    monkeypatch.setattr("axzoo.bundle.archive.refuse_deviations", then_change)
    with pytest.raises(AxzooError, match=f"{POST} changed while it was packed: verify the bundle"):
        pack(changing, tmp_path / "x.tar")
    assert _names(tmp_path) == ["changing"]


def test_an_archive_inside_its_own_bundle(bundle: Path) -> None:
    with pytest.raises(AxzooError, match="lies inside the bundle: give the archive another place"):
        pack(bundle, bundle / "tokenizer" / "x.tar")
    assert list(deviations(bundle)) == []


@pytest.mark.parametrize("kind", ["pipe", "link", "broken link", "folder"])
def test_an_output_that_is_no_ordinary_file_stays(bundle: Path, tmp_path: Path, kind: str) -> None:
    """As /dev/full, /dev/stdout and links of the user's must."""
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
    with pytest.raises(AxzooError, match=r"x\.tar exists and is no ordinary file: name another"):
        pack(bundle, output)
    assert output.lstat() == before
    assert kind != "link" or target.read_text() == "mine"


def test_an_archive_is_written_anew(bundle: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("an earlier one")
    pack(bundle, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == packed.read_bytes()


def test_a_target_that_is_taken(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    unpack(packed, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "file"):
        before = _contents(tmp_path)
        with pytest.raises(AxzooError, match=f"{name} exists: name a new folder"):
            unpack(packed, tmp_path / name)
        assert _contents(tmp_path) == before


def test_a_disk_too_small(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 100))  # type: ignore[attr-defined]
    with pytest.raises(AxzooError, match=r"not enough disk space in .*: 0\.1 MB needed"):
        unpack(packed, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def _refused(data: bytes, folder: Path) -> None:
    """The archive is refused, and nothing at all is left, inside the folder or beside it."""
    path = folder / "stranger.tar"
    path.write_bytes(data)
    (folder / "below").mkdir(exist_ok=True)
    with pytest.raises(AxzooError) as error:
        unpack(path, folder / "below" / "target")
    assert "\n" not in str(error.value)
    assert _names(folder) == ["below", "stranger.tar"]
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
    """Changes the header of the first file behind the manifest."""

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


STRANGERS: dict[str, Callable[[Members], None]] = {
    "absolute path": _first(name="/tmp/evil"),
    "path upwards": _first(name=f"{NAME}/../../evil"),
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
    "a file twice": lambda members: members.insert(2, members[1]),
    "the manifest twice": lambda members: members.append(members[0]),
    "a file more": lambda members: members.append((_info(f"{NAME}/notes.txt"), b"")),
    "a file less": lambda members: members.__delitem__(3),
    "another order": lambda members: members.reverse(),
    "manifest last": lambda members: members.append(members.pop(0)),
    "nothing": lambda members: members.clear(),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_strangers_archive(packed: Path, tmp_path: Path, case: str) -> None:
    members = _members(packed)
    STRANGERS[case](members)
    _refused(_tar(members), tmp_path)


def test_the_members_alone_make_the_archive(packed: Path) -> None:
    """So what the strangers' archives are refused for is what they changed."""
    assert _tar(_members(packed)) == packed.read_bytes()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers(packed: Path, tmp_path: Path, form: int) -> None:
    members = _members(packed)
    members[1][0].name = f"{NAME}/{'x' * 300}"
    _refused(_tar(members, form), tmp_path)
    members.insert(0, (_info("x" * 300), b""))
    _refused(_tar(members, form), tmp_path)


def _with_manifest(packed: Path, change: Callable[[Any], None]) -> bytes:
    """The archive with another manifest, whose own header is right."""
    members = _members(packed)
    manifest = json.loads(members[0][1])
    change(manifest)
    data = json.dumps(manifest).encode()
    members[0][0].size = len(data)
    return _tar([(members[0][0], data), *members[1:]])


def _add_file(name: str) -> Callable[[Any], None]:
    record = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    return lambda manifest: manifest["files"].update({name: record})


LIES: dict[str, Callable[[Any], None]] = {
    "a file above": _add_file("../evil"),
    "an absolute file": _add_file("/tmp/evil"),
    "a folder as file": _add_file("tokenizer"),
    "itself": _add_file(MANIFEST),
    "a name above": lambda manifest: manifest.update(name=".."),
    "another name": lambda manifest: manifest.update(name="other"),
    "a size beyond all disks": lambda manifest: manifest["files"]["run.sh"].update(size=1 << 60),
    "a size beyond tar": lambda manifest: manifest["files"]["run.sh"].update(size=1 << 34),
    "a size less": lambda manifest: manifest["files"]["run.sh"].update(size=1),
    "a size more": lambda manifest: manifest["files"]["run.sh"].update(size=700),
    "another digest": lambda manifest: manifest["files"]["run.sh"].update(sha256="0" * 64),
    "no files": lambda manifest: manifest.pop("files"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_strangers_manifest(packed: Path, tmp_path: Path, lie: str) -> None:
    _refused(_with_manifest(packed, LIES[lie]), tmp_path)


@pytest.mark.parametrize("data", [b"", b"x", bytes(512), bytes(10240), b"\xff" * 2048, b"not JSON" * 512])
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    _refused(data, tmp_path)


def test_a_manifest_that_is_no_json(packed: Path, tmp_path: Path) -> None:
    members = _members(packed)
    for data in (b"{", b"[" * 100_000, b"\xff\xff", b"[]"):
        members[0][0].size = len(data)
        _refused(_tar([(members[0][0], data), *members[1:]]), tmp_path)


def test_what_is_said_of_a_strangers_manifest(packed: Path, tmp_path: Path) -> None:
    """Whoever unpacks has no bundle to build again."""
    path = tmp_path / "stranger.tar"
    path.write_bytes(_with_manifest(packed, LIES["no files"]))
    with pytest.raises(AxzooError, match=r"stranger\.tar is damaged, or no archive of `axzoo pack`: its manifest"):
        unpack(path, tmp_path / "target")


def test_a_manifest_without_end_is_not_read(packed: Path, tmp_path: Path) -> None:
    header = tarfile.TarInfo(f"{NAME}/{MANIFEST}")
    header.size, header.mode = 1 << 32, 0o644
    path = tmp_path / "stranger.tar"
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 1 << 32)
    tracemalloc.start()
    with pytest.raises(AxzooError, match="is no archive of `axzoo pack`: it does not begin with a bundle's"):
        unpack(path, tmp_path / "target")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_memory_is_bounded(packed: Path, bundle: Path, tmp_path: Path) -> None:
    """A file of 64 MB goes through in pieces, both ways."""
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
def test_an_archive_cut_off(packed: Path, tmp_path: Path, cut: int) -> None:
    _refused(packed.read_bytes()[:cut], tmp_path)


@pytest.mark.parametrize("more", [b"\0", bytes(512), bytes(10240), b"x"])
def test_an_archive_with_more_behind_it(packed: Path, tmp_path: Path, more: bytes) -> None:
    _refused(packed.read_bytes() + more, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.data())
def test_no_byte_can_be_another(packed: Path, tmp_path: Path, choose: st.DataObject) -> None:
    """But within the manifest, which is the measure of all others."""
    data = bytearray(packed.read_bytes())
    manifest = range(512, 512 + len(_members(packed)[0][1]))
    at = choose.draw(st.integers(0, len(data) - 1).filter(lambda at: at not in manifest))
    data[at] ^= choose.draw(st.integers(1, 255))
    _refused(bytes(data), tmp_path)


def test_a_name_that_no_plain_tar_holds(bundle: Path, tmp_path: Path) -> None:
    long = Path(shutil.copytree(bundle, tmp_path / "long"))
    manifest = json.loads((long / MANIFEST).read_text())
    manifest["name"] = "ü" * 150
    (long / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(AxzooError, match="does not fit a plain tar, names of 255 bytes and files of 8 GB"):
        pack(long, tmp_path / "x.tar")
    assert _names(tmp_path) == ["long"]
