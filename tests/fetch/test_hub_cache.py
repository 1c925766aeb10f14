"""HF_HUB_OFFLINE: a repository in the hub's cache, as huggingface_hub itself writes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, LARGE, Hub, serving
from safetensors.torch import save
from tiny_gguf import Tiny

from axzoo.checkpoint import open_checkpoint
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.fetch.hub_cache import fetch_cached
from axzoo.fetch.sources import HubSource, checkpoint_folder, is_complete

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": save({"w": torch.arange(LARGE, dtype=torch.uint8).float()}),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def download(cache: Path, files: dict[str, bytes], names: tuple[str, ...] = ()) -> Path:
    """Writes the cache with huggingface_hub, file by file. Returns the snapshot."""
    from huggingface_hub import hf_hub_download

    with serving(Hub("org/model", files)) as hub:
        for name in names or files:
            hf_hub_download("org/model", name, revision=COMMIT, cache_dir=cache, endpoint=hub.endpoint)
    repository = cache / "models--org--model"
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs/main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_the_commit_is_read_in_place(cache: Path, tmp_path: Path, revision: str) -> None:
    snapshot = download(cache, FILES)
    source = HubSource("org/model", revision)
    fetch_cached(source, tmp_path / "output")
    receipt = read_json(tmp_path / "output/source.json")
    assert receipt["source"] == {"hub": "org/model", "revision": revision, "commit": COMMIT}
    assert receipt["root"] == str(snapshot)
    assert sorted(receipt["files"]) == sorted(FILES)
    assert all("sha256" in record for record in receipt["files"].values())
    assert is_complete(tmp_path / "output", source)
    folder = checkpoint_folder(tmp_path / "output/source.json")
    assert open_checkpoint(folder).read_rows("w", 1, 3).tolist() == [1.0, 2.0]


def test_the_command_needs_no_network(cache: Path, tmp_path: Path) -> None:
    download(cache, FILES)
    words = ["--hub", "org/model", "--revision", "main", "--output", str(tmp_path / "out")]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "axzoo.cli", "fetch", *words], env={**environment, "PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0
    assert read_json(tmp_path / "out/source.json")["source"]["commit"] == COMMIT


def test_pickles_and_gguf_files_are_converted(cache: Path, tmp_path: Path, tiny: Tiny) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "x.bin")
    download(cache, {"config.json": b"{}", "pytorch_model.bin": (tmp_path / "x.bin").read_bytes()})
    fetch_cached(HubSource("org/model", "main"), tmp_path / "pickled")
    assert open_checkpoint(tmp_path / "pickled").read_rows("w", 0, 3).tolist() == [1.0, 1.0, 1.0]
    download(cache, {"x.gguf": tiny.write(tmp_path / "x.gguf").read_bytes()})
    fetch_cached(HubSource("org/model", "main", "x.gguf"), tmp_path / "gguf")
    assert "model.norm.weight" in open_checkpoint(tmp_path / "gguf").tensors


def test_what_is_not_in_the_cache_is_refused_with_a_remedy(cache: Path, tmp_path: Path) -> None:
    source, output = HubSource("org/model", "main"), tmp_path / "output"
    message = (
        f"org/model at main is not in the hub's cache {cache}, and HF_HUB_OFFLINE is set: unset that to fetch it, or"
    )
    with pytest.raises(AxzooError, match=message):
        fetch_cached(source, output)
    download(cache, FILES, ("config.json",))
    with pytest.raises(AxzooError, match=r"cannot be used: .* contains no weights .*; or unset HF_HUB_OFFLINE"):
        fetch_cached(source, output)
    for other in ("v2", "f" * 40, "../../refs/main"):
        with pytest.raises(AxzooError, match="is not in the hub's cache"):
            fetch_cached(HubSource("org/model", other), output)
    download(cache, FILES)  # the remedy
    fetch_cached(source, output)


def test_a_damaged_blob_is_refused(cache: Path, tmp_path: Path) -> None:
    blob = (download(cache, FILES) / "model.safetensors").resolve()
    blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])
    with pytest.raises(AxzooError, match=f"{blob} in the hub's cache is damaged: remove it and download"):
        fetch_cached(HubSource("org/model", "main"), tmp_path / "output")
    assert not (tmp_path / "output/source.json").exists()
