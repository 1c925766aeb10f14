import json
from pathlib import Path

import pytest

from axzoo.errors import AxzooError
from axzoo.fetch import fetch
from axzoo.fetch.receipt import digested
from axzoo.zoo.sources import FolderSource


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "modeling.py", "pytorch_model.bin"):
        (folder / name).write_text(name)
    return folder


def test_the_receipt_points_at_the_folder(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fetch(FolderSource("checkpoint"), tmp_path / "output")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["source.json"]
    assert json.loads((tmp_path / "output" / "source.json").read_text()) == {
        "source": {"path": "checkpoint"},
        "root": str(checkpoint),
        "files": {
            "config.json": {"size": 11, "sha256": digested(checkpoint / "config.json").sha256},
            "model.safetensors": {"size": 17, "sha256": None},
            "tokenizer.json": {"size": 14, "sha256": digested(checkpoint / "tokenizer.json").sha256},
        },
    }


def test_a_changed_folder_is_seen_again(checkpoint: Path, tmp_path: Path) -> None:
    fetch(FolderSource(str(checkpoint)), tmp_path)
    before = (tmp_path / "source.json").read_text()
    (checkpoint / "config.json").write_text("CONFIG.JSON")  # the same size
    fetch(FolderSource(str(checkpoint)), tmp_path)
    assert (tmp_path / "source.json").read_text() != before


@pytest.mark.parametrize(("missing", "said"), [("config.json", "no config.json"), ("model.safetensors", "neither")])
def test_a_folder_without_a_checkpoint(checkpoint: Path, tmp_path: Path, missing: str, said: str) -> None:
    (checkpoint / "pytorch_model.bin").unlink()
    (checkpoint / missing).unlink()
    with pytest.raises(AxzooError, match=said):
        fetch(FolderSource(str(checkpoint)), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="is not a folder"):
        fetch(FolderSource(str(tmp_path / "nowhere")), tmp_path / "output")
