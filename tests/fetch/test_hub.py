import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, Hub, serving
from safetensors.torch import load_file

from axzoo.core.errors import AxzooError
from axzoo.fetch import fetch
from axzoo.fetch.hub import fetch_hub
from axzoo.fetch.sources import HubSource, hashed_file, is_complete

WEIGHTS = random.Random(0).randbytes(12 << 20)  # more than one of the library's chunks of 10 MiB
SOURCE = HubSource("org/model", "main")
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "modeling_custom.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"gguf",
    "README.md": b"words",
    "onnx/model.safetensors": b"another format",
}
WANTED = ["README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub("org/model", dict(FILES))) as running:
        yield running


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def test_fetches_the_checkpoint_and_nothing_else(hub: Hub, output: Path) -> None:
    fetch_hub(SOURCE, output, hub.endpoint)
    assert sorted(path.name for path in output.iterdir()) == sorted([*WANTED, "source.json"])
    assert all((output / name).read_bytes() == FILES[name] for name in WANTED)
    receipt = json.loads((output / "source.json").read_text())
    assert receipt["source"] == {"hub": "org/model", "revision": "main", "commit": COMMIT}
    assert receipt["root"] == "."
    assert receipt["files"]["config.json"] == hashed_file(output / "config.json").to_dict()
    assert receipt["files"]["config.json"]["size"] == 23
    assert is_complete(output, SOURCE)
    assert not is_complete(output, HubSource("org/model", "v2"))


def test_every_file_is_requested_at_the_commit(hub: Hub, output: Path) -> None:
    fetch_hub(SOURCE, output, hub.endpoint)
    paths = [path for _, path, _ in hub.requests if "resolve" in path]
    assert len(paths) == len(WANTED)
    assert all(f"/resolve/{COMMIT}/" in path for path in paths)


def test_pickles_are_fetched_only_without_safetensors(hub: Hub, output: Path) -> None:
    saved = io.BytesIO()
    torch.save({"w": torch.arange(6.0).view(2, 3)}, saved)
    del hub.files["model.safetensors"]
    hub.files["pytorch_model.bin"] = saved.getvalue()
    fetch_hub(SOURCE, output, hub.endpoint)
    assert sorted(path.name for path in output.iterdir()) == sorted([*WANTED, "source.json"])
    assert load_file(output / "model.safetensors")["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    hub.requests.clear()
    fetch(HubSource("org/model", "main"), output)
    assert hub.requests == []  # the converted checkpoint is complete


def test_a_broken_transfer_is_resumed_by_the_next_run(hub: Hub, output: Path) -> None:
    hub.break_at["model.safetensors"] = 11 << 20
    with pytest.raises(AxzooError, match=r"model\.safetensors was interrupted .* run again"):
        fetch_hub(SOURCE, output, hub.endpoint)
    assert not (output / "model.safetensors").exists()
    assert not (output / "source.json").exists()
    hub.requests.clear()
    fetch_hub(SOURCE, output, hub.endpoint)
    (resumed,) = hub.asked("GET", "/cdn/model.safetensors")
    assert resumed["range"] == f"bytes={10 << 20}-"  # what the library had handed over when the connection broke
    assert (output / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.asked("GET", f"{COMMIT}/config.json") == []  # was complete
    assert sorted(path.name for path in output.iterdir()) == sorted([*WANTED, "source.json"])


def test_an_early_end_is_resumed_within_the_run(hub: Hub, output: Path) -> None:
    hub.break_at["model.safetensors"], hub.gentle = 11 << 20, True
    fetch_hub(SOURCE, output, hub.endpoint)
    assert [headers.get("range") for headers in hub.asked("GET", "/cdn/model.safetensors")] == [
        None,
        f"bytes={10 << 20}-",
    ]
    assert (output / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_ignores_ranges_starts_over(hub: Hub, output: Path) -> None:
    hub.break_at["model.safetensors"] = 11 << 20
    with pytest.raises(AxzooError):
        fetch_hub(SOURCE, output, hub.endpoint)
    hub.ranges = False
    fetch_hub(SOURCE, output, hub.endpoint)
    assert (output / "model.safetensors").read_bytes() == WEIGHTS


def test_existing_files_are_verified(hub: Hub, output: Path) -> None:
    fetch_hub(SOURCE, output, hub.endpoint)
    (output / "source.json").unlink()
    (output / "tokenizer.json").write_bytes(b"[]")  # the right size, other bytes
    hub.requests.clear()
    fetch_hub(SOURCE, output, hub.endpoint)
    assert (output / "tokenizer.json").read_bytes() == b"{}"
    assert len(hub.asked("GET", "resolve")) == 1


@pytest.mark.parametrize("served", [WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]), WEIGHTS[:-7], WEIGHTS + b"more"])
def test_content_that_differs_from_the_listing_is_removed(hub: Hub, output: Path, served: bytes) -> None:
    hub.served["model.safetensors"] = served
    with pytest.raises(AxzooError, match=r"model\.safetensors: the content received differs"):
        fetch_hub(SOURCE, output, hub.endpoint)
    assert not (output / "model.safetensors").exists()
    assert not any((output / ".parts").iterdir())
    hub.served.clear()
    fetch_hub(SOURCE, output, hub.endpoint)
    assert (output / "model.safetensors").read_bytes() == WEIGHTS


def test_a_new_commit_does_not_resume_the_old_file(hub: Hub, output: Path) -> None:
    hub.break_at["model.safetensors"] = 11 << 20
    with pytest.raises(AxzooError):
        fetch_hub(SOURCE, output, hub.endpoint)
    hub.files["model.safetensors"] = changed = WEIGHTS[::-1]
    hub.requests.clear()
    fetch_hub(SOURCE, output, hub.endpoint)
    assert "range" not in hub.asked("GET", "/cdn/")[0]
    assert (output / "model.safetensors").read_bytes() == changed


def test_files_of_another_fetch_are_refused(hub: Hub, output: Path) -> None:
    output.mkdir()
    (output / "model-00001-of-00002.safetensors").write_bytes(b"old")
    with pytest.raises(AxzooError, match=r"model-00001-of-00002\.safetensors from another fetch"):
        fetch_hub(SOURCE, output, hub.endpoint)


def test_private_repository_needs_and_uses_the_token(hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    with pytest.raises(AxzooError, match="HF_TOKEN"):
        fetch_hub(SOURCE, output, hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_hub(SOURCE, output, hub.endpoint)
    assert hub.asked("GET", "resolve")[-1]["authorization"] == "Bearer hf_secret"
    assert all("authorization" not in headers for headers in hub.asked("GET", "/cdn/"))  # another host


def test_gated_repository_says_what_to_do(hub: Hub, output: Path) -> None:
    hub.token, hub.gated = "hf_secret", True
    with pytest.raises(AxzooError, match=r"org/model is gated: accept its terms .* HF_TOKEN"):
        fetch_hub(SOURCE, output, hub.endpoint)


def test_unknown_repository_and_revision(hub: Hub, output: Path) -> None:
    with pytest.raises(AxzooError, match="no repository org/other"):
        fetch_hub(HubSource("org/other", "main"), output, hub.endpoint)
    with pytest.raises(AxzooError, match="org/model has no revision 'v9'"):
        fetch_hub(HubSource("org/model", "v9"), output, hub.endpoint)


@pytest.mark.parametrize("repo", ["../etc", "org/model/extra", "org/..", "", "org/mo del", "https://example.org/x"])
def test_invalid_repository_names_are_refused_without_a_request(hub: Hub, output: Path, repo: str) -> None:
    with pytest.raises(AxzooError, match="is not a hub repository"):
        fetch_hub(HubSource(repo, "main"), output, hub.endpoint)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../b", "..\\config.json"])
def test_a_file_name_outside_the_repository_is_refused(hub: Hub, output: Path, name: str) -> None:
    hub.files[name] = b"x"
    with pytest.raises(AxzooError, match="outside the repository: refused"):
        fetch_hub(SOURCE, output, hub.endpoint)
    assert list(output.iterdir()) == []
    assert hub.asked("GET", "resolve") == []


@pytest.mark.parametrize(
    "info",
    [
        b"<html>sign in to the network</html>",
        b"[]",
        json.dumps({"id": "x", "sha": "../..", "siblings": []}).encode(),
        json.dumps({"id": "x", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]}).encode(),
        json.dumps(
            {"id": "x", "sha": COMMIT, "siblings": [{"rfilename": "a", "size": -1, "blobId": "0" * 40}]}
        ).encode(),
        json.dumps({"id": "x", "sha": COMMIT, "siblings": [{"rfilename": "a", "size": 1, "blobId": "../x"}]}).encode(),
    ],
)
def test_an_invalid_listing(hub: Hub, output: Path, info: bytes) -> None:
    hub.info = info
    with pytest.raises(AxzooError, match="did not answer like a hub"):
        fetch_hub(SOURCE, output, hub.endpoint)


@pytest.mark.parametrize(("missing", "message"), [("config.json", "no config.json"), ("model.safetensors", "neither")])
def test_a_repository_without_a_checkpoint(hub: Hub, output: Path, missing: str, message: str) -> None:
    del hub.files[missing]
    hub.files.pop("pytorch_model.bin")
    hub.files.pop("model.gguf")
    with pytest.raises(AxzooError, match=message):
        fetch_hub(SOURCE, output, hub.endpoint)


def test_a_hub_that_cannot_be_reached(output: Path) -> None:
    with pytest.raises(AxzooError, match="cannot reach the hub"):
        fetch_hub(SOURCE, output, "http://127.0.0.1:9")


def test_a_full_disk_is_detected_before_the_transfer(hub: Hub, output: Path) -> None:
    lfs = {"sha256": "0" * 64, "size": 1 << 60, "pointerSize": 1}
    config = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40}
    weights = {"rfilename": "model.safetensors", "size": 1 << 60, "blobId": "0" * 40, "lfs": lfs}
    hub.info = json.dumps({"id": "x", "sha": COMMIT, "siblings": [config, weights]}).encode()
    with pytest.raises(AxzooError, match=r"not enough disk space in .* Free some space and run again"):
        fetch_hub(SOURCE, output, hub.endpoint)
    assert hub.asked("GET", "resolve") == []
