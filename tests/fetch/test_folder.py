import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny_gguf import Tiny

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.gguf.conversion import FILES
from axzoo.core.errors import AxzooError
from axzoo.core.files import sha256_of
from axzoo.fetch import fetch
from axzoo.fetch.sources import FolderSource, checkpoint_folder, hashed_file
from axzoo.model.spec import TensorRef
from axzoo.parts.lock import digest_rows, make_lock


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "modeling.py", "pytorch_model.bin"):
        (folder / name).write_text(name)
    return folder


def stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    times = {"modified_ns": stat.st_mtime_ns, "changed_ns": stat.st_ctime_ns}
    return {"size": stat.st_size, **times, "inode": stat.st_ino}


def test_the_receipt_points_to_the_folder(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fetch(FolderSource("checkpoint"), tmp_path / "output")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["source.json"]
    assert json.loads((tmp_path / "output" / "source.json").read_text()) == {
        "source": {"path": "checkpoint"},
        "root": str(checkpoint),
        "files": {
            "config.json": {"sha256": sha256_of(checkpoint / "config.json"), **stamp(checkpoint / "config.json")},
            "model.safetensors": stamp(checkpoint / "model.safetensors"),
            "tokenizer.json": {
                "sha256": sha256_of(checkpoint / "tokenizer.json"),
                **stamp(checkpoint / "tokenizer.json"),
            },
        },
    }


def test_a_changed_folder_gets_a_new_receipt(checkpoint: Path, tmp_path: Path) -> None:
    fetch(FolderSource(str(checkpoint)), tmp_path)
    before = (tmp_path / "source.json").read_text()
    (checkpoint / "config.json").write_text("CONFIG.JSON")  # the same size
    fetch(FolderSource(str(checkpoint)), tmp_path)
    assert (tmp_path / "source.json").read_text() != before


@pytest.mark.parametrize(("missing", "message"), [("config.json", "no config.json"), ("model.safetensors", "neither")])
def test_a_folder_without_a_checkpoint(checkpoint: Path, tmp_path: Path, missing: str, message: str) -> None:
    (checkpoint / "pytorch_model.bin").unlink()
    (checkpoint / missing).unlink()
    with pytest.raises(AxzooError, match=message):
        fetch(FolderSource(str(checkpoint)), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="is not a folder"):
        fetch(FolderSource(str(tmp_path / "nowhere")), tmp_path / "output")


@pytest.mark.parametrize("named", [True, False], ids=["the file", "its folder"])
def test_a_gguf_becomes_a_checkpoint_that_locks(tiny: Tiny, tmp_path: Path, named: bool) -> None:
    folder, output = tmp_path / "downloads", tmp_path / "output"
    folder.mkdir()
    path = tiny.write(folder / "tiny.gguf")
    (folder / "config.json").write_text('{"model_type": "another"}')  # what lies beside a GGUF is not its own
    fetch(FolderSource(str(path if named else folder)), output)
    receipt = json.loads((output / "source.json").read_text())
    assert receipt["root"] == "."
    assert receipt["files"] == {name: hashed_file(output / name).to_dict() for name in FILES}
    assert receipt["converted_from"] == {"root": str(folder), "files": {path.name: stamp(path)}}
    lock = make_lock(checkpoint_folder(output / "source.json"), "llama", 2)
    save_file({"w": tiny.model.lm_head.weight.detach()}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    wanted = digest_rows(tmp_path, checkpoint, TensorRef("w", checkpoint.tensors["w"].shape))
    assert lock.of_kind("embed")[0].tensors["embed.weight"].blake3 == wanted.blake3


def test_a_gguf_next_to_other_weights_is_ignored(tiny: Tiny, checkpoint: Path, tmp_path: Path) -> None:
    tiny.write(checkpoint / "tiny.gguf")
    fetch(FolderSource(str(checkpoint)), tmp_path / "output")
    receipt = json.loads((tmp_path / "output" / "source.json").read_text())
    assert (receipt["root"], "tiny.gguf" in receipt["files"]) == (str(checkpoint), False)


def test_several_gguf_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(
        AxzooError, match=rf"{tmp_path} contains 2 GGUF files \(a\.gguf, b\.gguf\): give the path of the one to convert"
    ):
        fetch(FolderSource(str(tmp_path)), tmp_path / "output")


def test_a_damaged_gguf_leaves_no_receipt(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(AxzooError, match=r"a\.gguf is not a readable GGUF file"):
        fetch(FolderSource(str(tmp_path)), tmp_path / "output")
    assert list((tmp_path / "output").iterdir()) == []


def test_a_gguf_refuses_files_of_another_fetch(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "vocab.json").touch()
    with pytest.raises(AxzooError, match=r"contains vocab\.json from another fetch"):
        fetch(FolderSource(str(tiny.write(tmp_path / "tiny.gguf"))), tmp_path / "output")
