"""`axzoo verify`, `pack` and `unpack` on the command line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from axzoo.bundle.completion import complete_bundle
from axzoo.cli import main
from tiny_model import Built

TAG = "tiny-w8a16"


@pytest.fixture
def bundle(s8: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one bundle, its lock and its checkpoint."""
    built = s8.moved(tmp_path / "results/AX650" / TAG)
    complete_bundle(built.plan)
    shutil.copytree(s8.locks, tmp_path / "results/locks/tiny")
    shutil.copytree(s8.source.parent, tmp_path / "results/checkpoints/tiny")
    monkeypatch.chdir(tmp_path)
    return Path("results/AX650") / TAG


def test_verify(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert capsys.readouterr().out == f"{bundle}: 13 files, 0.1 MB, all match the manifest\n"
    (bundle / "run.sh").unlink()
    assert main(["verify", str(bundle), "--checks"]) == 1
    output = capsys.readouterr()
    assert output.out == "run.sh is missing\n"
    remedy = "build it again with the command that built it, or copy it again"
    assert output.err == f"axzoo: {bundle} does not match its manifest (deviations: 1): {remedy}\n"


@pytest.mark.parametrize("verb", ["verify", "pack"])
def test_file_instead_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    (tmp_path / "x.tar").write_text("")
    assert main([verb, str(tmp_path / "x.tar")]) == 1
    message = "is a file: give the folder of a bundle; `axzoo unpack` extracts archives"
    assert capsys.readouterr().err == f"axzoo: {tmp_path}/x.tar {message}\n"


def test_verify_with_checks(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--checks", "--prompt=hi there"]) == 0
    assert "level 1 passed: 2 layers" in capsys.readouterr().err


def test_checks_of_a_moved_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle and its lock are outside the project's results folder."""
    bundle.rename("here")
    Path("results/locks/tiny").rename("lock")
    assert main(["verify", "here", "--checks"]) == 1
    assert re.search(r"level 1 cannot run: \S+ is missing: use --lock", capsys.readouterr().err)
    source = "results/checkpoints/tiny/source.json"
    assert main(["verify", "here", "--checks", "--lock", "lock"]) == 1
    assert "is missing: use --source to give its location" in capsys.readouterr().err
    assert main(["verify", "here", "--checks", "--lock", "lock", "--source", source, "--prompt=hi"]) == 0


@pytest.mark.parametrize("change", [('"path": "tiny"', '"path": "other"'), ('"theta": 10000.0', '"theta": 10001.0')])
def test_lock_of_another_checkpoint(bundle: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str]) -> None:
    index = Path("results/locks/tiny/index.json")
    text = index.read_text()
    assert change[0] in text
    index.write_text(text.replace(*change))
    assert main(["verify", str(bundle), "--checks"]) == 1
    assert "tiny belongs to another checkpoint: use --lock to give the right one" in capsys.readouterr().err
    index.write_text("{}")
    assert main(["verify", str(bundle), "--checks"]) == 1
    assert re.search(r"index\.json (is damaged|has format 1)", capsys.readouterr().err)


def test_pack_and_unpack(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(bundle)]) == 0
    assert f"into {TAG}.tar (" in capsys.readouterr().err
    assert main(["unpack", f"{TAG}.tar", "board/bundle"]) == 0
    assert f"unpacked {TAG} into board/bundle: 13 files" in capsys.readouterr().err
    assert main(["verify", "board/bundle"]) == 0
    assert main(["pack", "board/bundle", "out/again.tar"]) == 0
    assert Path("out/again.tar").read_bytes() == Path(f"{TAG}.tar").read_bytes()
    assert main(["unpack", "out/again.tar", "board/bundle"]) == 1
    assert "axzoo: board/bundle exists: choose a new folder\n" in capsys.readouterr().err
    assert main(["unpack", "nowhere.tar", "x"]) == 1
    assert capsys.readouterr().err == "axzoo: nowhere.tar: No such file or directory\n"
