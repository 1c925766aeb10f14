"""Checkpoints as people have them: each layout of files with every reader of it, and with transformers.

The value of tensor "w" says which file it was read from.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Hub, serving
from safetensors.torch import save
from tiny_gguf import Tiny
from transformers.modeling_utils import _get_resolved_checkpoint_files

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.local_files import find_checkpoint
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.fetch import fetch
from axzoo.fetch.folder import local_checkpoint
from axzoo.fetch.hub import fetch_hub
from axzoo.fetch.sources import FolderSource, HubSource, checkpoint_folder

ROOT = Path(__file__).parents[2]
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
SOURCE = HubSource("org/model", "main")


@dataclass(frozen=True)
class Holds:
    """A file of weights with these tensors, each of one value."""

    tensors: Mapping[str, float]


def w(value: float) -> Holds:
    return Holds({"w": value})


def index(**placed: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": placed}).encode()


def written(name: str, content: Holds | bytes | str) -> bytes:
    if not isinstance(content, Holds):
        return content.encode() if isinstance(content, str) else content
    tensors = {key: torch.tensor([value]) for key, value in content.tensors.items()}
    if ".safetensors" in name:
        return save(tensors)
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written(name, content))
    return folder


def six(count: int, stem: str = "model-", end: str = ".safetensors") -> list[str]:
    return [f"{stem}{number + 1:05}-of-{count:06}{end}" for number in range(count)]


A, B = Holds({"a": 1.0}), Holds({"b": 2.0})
AB = {"a": 1.0, "b": 2.0}
CONFIG = {"config.json": "{}"}
OLD = {"model-00001-of-00002.safetensors": A, "model-00002-of-00002.safetensors": B}
OLD_INDEX = {f"{SAFE}.index.json": index(a=min(OLD), b=max(OLD))}
BIN = {"pytorch_model-00001-of-00002.bin": A, "pytorch_model-00002-of-00002.bin": B}
BIN_INDEX = {f"{PICKLED}.index.json": index(a=min(BIN), b=max(BIN))}
ADAPTER = {"adapter_config.json": '{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": w(9)}


def of_index(names: list[str], form: str = SAFE) -> dict[str, Any]:
    return {names[0]: A, names[1]: B, f"{form}.index.json": index(a=names[0], b=names[1])}


READ: dict[str, tuple[Mapping[str, Any], Mapping[str, float]]] = {
    "one file": ({SAFE: w(1)}, {"w": 1}),
    "shards and their index": (OLD | OLD_INDEX, AB),
    "six digits": (of_index(six(2)), AB),
    "model.safetensors-1-of-2": (of_index(six(2, "model.safetensors-", "")), AB),
    "model.safetensors-1-of-2.safetensors": (of_index(six(2, "model.safetensors-")), AB),
    "shards with other names": (of_index(["part_a.safetensors", "tail.safetensors"]), AB),
    "an index of one file": ({SAFE: A, f"{SAFE}.index.json": index(a=SAFE)}, {"a": 1}),
    "one file beside old shards": ({SAFE: w(3)} | OLD | OLD_INDEX, {"w": 3}),
    "one file beside the index of removed shards": ({SAFE: w(3)} | OLD_INDEX, {"w": 3}),
    "one file beside old shards without index": ({SAFE: w(3)} | OLD, {"w": 3}),
    "one shard without index": ({"model-00001-of-00001.safetensors": w(4)}, {"w": 4}),
    "all shards without index": (OLD, AB),
    "all six-digit shards without index": (dict(zip(six(2), (A, B), strict=True)), AB),
    "pickled": ({PICKLED: w(5)}, {"w": 5}),
    "pickled shards": (BIN | BIN_INDEX, AB),
    "pickled, six digits": (of_index(six(2, "pytorch_model-", ".bin"), PICKLED), AB),
    "one pickle beside old shards": ({PICKLED: w(6)} | BIN | BIN_INDEX, {"w": 6}),
    "one pickled shard without index": ({"pytorch_model-00001-of-00001.bin": w(7)}, {"w": 7}),
    "both formats": ({SAFE: w(1), PICKLED: w(2)}, {"w": 1}),
    "sharded safetensors beside one pickle": (OLD | OLD_INDEX | {PICKLED: w(2)}, AB),
    "another index beside a pickle": ({PICKLED: w(2), "tf_model.h5.index.json": "[]"}, {"w": 2}),
    "variants beside the model": ({SAFE: w(1), "model.fp16.safetensors": w(2)}, {"w": 1}),
    "Meta's files beside the model": ({SAFE: w(1), "original/consolidated.00.pth": "x", "params.json": "{}"}, {"w": 1}),
    "Mistral's file beside the model": (OLD | OLD_INDEX | {"consolidated.safetensors": w(2)}, AB),
    "subfolders": ({SAFE: w(1), f"checkpoint-500/{SAFE}": w(2), f"onnx/{SAFE}": w(3)}, {"w": 1}),
    "other formats": ({SAFE: w(1), "tf_model.h5": "x", "model.onnx": "x", "x.gguf": "x", "a.pt": "x"}, {"w": 1}),
    "adapter weights that no config announces": ({SAFE: w(1), "adapter_model.safetensors": w(2)}, {"w": 1}),
}

REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "nothing": ({}, "no weights that axzoo can read: neither model.safetensors nor pytorch_model.bin"),
    "a shard is missing": ({min(OLD): A} | OLD_INDEX, "model-00002-of-00002.safetensors is missing, and model"),
    "all shards are missing": (OLD_INDEX, "model-00001-of-00002.safetensors, model-00002.* are missing, and model"),
    "a shard is missing, without index": ({max(OLD): B}, r"contains no index, and its shards .* are 1 of 2: "),
    "a shard too many": (OLD | {"model-00003-of-00002.safetensors": w(1)}, "are not numbered 1 to 2"),
    "shards numbered from zero": (
        {"model-00000-of-00002.safetensors": A, "model-00001-of-00002.safetensors": B},
        "are not numbered 1 to 2: copy or write their index",
    ),
    "shards of two checkpoints": (OLD | {"model-00001-of-00001.safetensors": w(1)}, "shards of several checkpoints"),
    "both kinds of digits": (OLD | dict(zip(six(2), (A, B), strict=True)), "shards of several checkpoints"),
    "an index that leaves the folder": ({f"{SAFE}.index.json": index(a="../x.safetensors")}, "in the same folder"),
    "an index of an absolute path": ({f"{SAFE}.index.json": index(a="/etc/x.safetensors")}, "in the same folder"),
    "an index of a subfolder": ({f"{SAFE}.index.json": index(a="x/y.safetensors")}, "in the same folder"),
    "an index of the receipt": ({f"{SAFE}.index.json": index(a="source.json")}, r"is not a \*\.safetensors file"),
    "an index of an index": ({f"{SAFE}.index.json": index(a=f"{SAFE}.index.json")}, "is not a .*safetensors file"),
    "an index of pickles": ({f"{SAFE}.index.json": index(a=PICKLED), PICKLED: w(1)}, "is not a .*safetensors file"),
    "an empty index": ({f"{SAFE}.index.json": "{}"}, "has no weight_map"),
    "an index that is not JSON": ({f"{SAFE}.index.json": "{"}, "is not valid JSON"),
    "a variant": ({"model.fp16.safetensors": w(1)}, "is the variant fp16: .* is called model.safetensors"),
    "a pickled variant": ({"pytorch_model.fp16.bin": w(1)}, "is the variant fp16: .* is called pytorch_model.bin"),
    "a sharded variant": (
        {"model.fp16-00001-of-00001.safetensors": w(1), f"{SAFE}.index.fp16.json": index(w="x")},
        "index.fp16.json is the variant fp16: .* is called model.safetensors.index.json",
    ),
    "Meta's files": ({"consolidated.00.pth": "x", "params.json": "{}"}, "consolidated.00.pth is Meta's or Mistral's"),
    "Mistral's file": (
        {"consolidated.safetensors": w(1)},
        "consolidated.safetensors is Meta's or Mistral's",
    ),
    "another name": ({"weights.safetensors": w(1)}, "if weights.safetensors contains .* is called model.safetensors"),
    "TensorFlow": ({"tf_model.h5": "x"}, r"It contains tf_model\.h5 \(TensorFlow\)"),
    "a model in a subfolder": ({f"inner/{SAFE}": w(1), "inner/config.json": "{}"}, "folder inner contains a config"),
    "an adapter beside a model": ({SAFE: w(1)} | ADAPTER, "a model and an adapter .*merge_and_unload.* or remove"),
    "an adapter with a config": (ADAPTER, "a model and an adapter"),
    "weights of an adapter": ({"adapter_model.safetensors": w(1)}, "contains an adapter, not a model: merge it"),
    "parts of a GGUF": ({"x-00001-of-00002.gguf": "GGUF"}, "one of 2 parts .*llama-gguf-split --merge"),
    "several GGUFs": ({"x-Q8_0.gguf": "GGUF", "x-Q4_0.GGUF": "GGUF"}, r"2 GGUF files \(x-Q4_0.GGUF, x-Q8_0.gguf\)"),
}


def values(folder: Path) -> dict[str, float]:
    checkpoint = open_checkpoint(folder)
    return {name: float(checkpoint.read_rows(name, 0, 1)[0]) for name in checkpoint.tensors}


def source_files(path: Path) -> list[str]:
    """The files that a plan compares with the fetch receipt."""
    try:
        return [str(file) for file in local_checkpoint(str(path)).paths]
    except AxzooError:
        return []


@pytest.mark.parametrize(("files", "expected"), READ.values(), ids=READ.keys())
def test_every_reader_reads_the_same_files(
    files: Mapping[str, Any], expected: Mapping[str, float], tmp_path: Path
) -> None:
    folder = write(tmp_path / "given", CONFIG | dict(files))
    found = find_checkpoint(folder)
    assert values(folder) == expected
    assert source_files(folder) == [str(path) for path in found.paths]
    fetch(FolderSource(str(folder)), tmp_path / "local")
    receipt = read_json(tmp_path / "local/source.json")
    assert sorted(receipt.get("converted_from", receipt)["files"]) == found.files.names
    assert values(checkpoint_folder(tmp_path / "local/source.json")) == expected
    (tmp_path / "given").rename(tmp_path / "elsewhere")  # the hub's copy must not need it
    hub_files = {name: written(name, content) for name, content in (CONFIG | dict(files)).items()}
    with serving(Hub("org/model", hub_files)) as hub:
        fetch_hub(SOURCE, tmp_path / "fetched", hub.endpoint)
    assert values(tmp_path / "fetched") == expected
    receipt = read_json(tmp_path / "fetched/source.json")
    assert sorted(receipt["files"]) == find_checkpoint(tmp_path / "fetched").files.names
    assert sorted(path.name for path in (tmp_path / "fetched").iterdir()) == sorted([*receipt["files"], "source.json"])


@pytest.mark.parametrize(("files", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_every_reader_refuses_with_the_same_reason(files: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "given", CONFIG | dict(files))
    output = tmp_path / "output"
    with pytest.raises(AxzooError, match=message) as read:
        find_checkpoint(folder)
    assert str(folder) in str(read.value)
    with pytest.raises(AxzooError) as fetched:
        fetch(FolderSource(str(folder)), output)
    assert str(fetched.value) == str(read.value)
    assert not output.exists()
    assert source_files(folder) == []
    with pytest.raises(AxzooError, match=message):
        open_checkpoint(folder)
    hub_files = {name: written(name, content) for name, content in (CONFIG | dict(files)).items()}
    with serving(Hub("org/model", hub_files)) as hub, pytest.raises(AxzooError, match=message) as refused:
        fetch_hub(SOURCE, output, hub.endpoint)
    assert "org/model at main" in str(refused.value)
    assert [path.name for path in output.iterdir() if path.name != ".parts"] == []
    assert not [path for _, path, _ in hub.requests if path.endswith((".safetensors", ".bin", ".gguf"))]


CANDIDATES: dict[str, Any] = {
    SAFE: w(1), **OLD, **OLD_INDEX, PICKLED: w(2), **BIN, **BIN_INDEX, "model.fp16.safetensors": w(3),
}  # fmt: skip


def test_whatever_transformers_finds_is_what_is_read(tmp_path: Path) -> None:
    """All combinations of the standard files, with the shards that belong to each index."""
    shards, pickles = dict.fromkeys(OLD, b""), dict.fromkeys(BIN, b"")
    groups: list[dict[str, Any]] = [{SAFE: b""}, shards | OLD_INDEX, OLD_INDEX, shards]
    groups += [{PICKLED: b""}, pickles | BIN_INDEX, pickles, {"model.fp16.safetensors": b""}]
    compared = 0
    for size in range(1, len(groups) + 1):
        for chosen in combinations(groups, size):
            files = {name: content for group in chosen for name, content in group.items()}
            folder = write(tmp_path / str(compared), CONFIG | files)
            compared += 1
            try:
                theirs, _ = _get_resolved_checkpoint_files(str(folder), None, None, None, None, False)
            except OSError:
                continue  # axzoo also reads shards without index
            theirs = [Path(path) for path in theirs]
            if all(path.exists() for path in theirs):
                assert [folder / name for name in find_checkpoint(folder).files.weights.files] == theirs, files
            else:
                with pytest.raises(AxzooError, match="missing"):
                    find_checkpoint(folder)
            shutil.rmtree(folder)
    assert compared == 2 ** len(groups) - 1


def test_what_is_fetched_is_selected_again() -> None:
    """A fetched folder contains only the selected files, so selecting from these must give the same."""
    from axzoo.checkpoint.listing import Listing
    from axzoo.checkpoint.selection import select_files

    def listing(names: frozenset[str]) -> Listing:
        return Listing(names, lambda name: json.loads(CANDIDATES[name]), "here", "again")

    selected = 0
    for size in range(1, len(CANDIDATES) + 1):
        for names in combinations(CANDIDATES, size):
            try:
                first = select_files(listing(frozenset({*names, "config.json", "vocab.txt", "other.py"})))
            except AxzooError:
                continue
            again = select_files(listing(frozenset(first.names)))
            assert (again.weights, again.small, again.unused) == (first.weights, first.small, ())
            selected += 1
    assert selected > 200


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SAFE, f"{SAFE}.index.json", min(OLD), PICKLED])
@pytest.mark.parametrize("state", ["a pointer", "a link to nothing", "a link to itself", "a pipe"])
def test_files_without_their_content_are_named(name: str, state: str, tmp_path: Path) -> None:
    weights = OLD | OLD_INDEX if name in OLD | OLD_INDEX else {PICKLED: w(1)} if name == PICKLED else {SAFE: w(1)}
    folder = write(tmp_path / "given", CONFIG | {"tokenizer.json": "{}"} | weights)
    (folder / name).unlink()
    if state == "a pointer":
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 988097824\n"
        (folder / name).write_text(pointer)
        message = "is a Git LFS pointer, not the file itself: run `git lfs pull`"
    elif state == "a link to nothing":
        (folder / name).symlink_to("../../blobs/0123")
        message = r"is a link to nothing \(\.\./\.\./blobs/0123 cannot be found\): .*cp -rL"
    elif state == "a link to itself":
        (folder / name).symlink_to(name)
        message = r"is a link to nothing"
    else:
        os.mkfifo(folder / name)
        message = "is not a regular file"
    for read in (find_checkpoint, lambda path: fetch(FolderSource(str(path)), tmp_path / "output")):
        with pytest.raises(AxzooError, match=f"{name} {message}"):
            read(folder)
    assert not (tmp_path / "output").exists()


def test_copying_a_snapshot_with_its_blobs_cures_links_to_nothing(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--org--x/snapshots/0123"
    blobs = write(tmp_path / "hub/models--org--x/blobs", {"c.safetensors": w(1), "d": "{}"})
    snapshot.mkdir(parents=True)
    for name, blob in ((SAFE, "c.safetensors"), ("config.json", "d")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert values(snapshot) == {"w": 1}
    shutil.copytree(snapshot, tmp_path / "moved", symlinks=True)
    with pytest.raises(AxzooError, match="link to nothing"):
        find_checkpoint(tmp_path / "moved")
    shutil.copytree(snapshot, tmp_path / "copied")  # follows links, as `cp -rL`
    assert values(tmp_path / "copied") == {"w": 1}
    assert blobs.is_dir()


@pytest.mark.parametrize("given", ["link.gguf", "link.GGUF", "link", "folder", "capitals"])
def test_a_gguf_by_any_name(tiny: Tiny, given: str, tmp_path: Path) -> None:
    """Links to blobs without extension, as `hf download` makes them, and names in capitals."""
    for name in ("blobs", "snapshot"):
        (tmp_path / name).mkdir()
    blob = tiny.write(tmp_path / "blobs/5f1d")
    if given == "capitals":
        path = shutil.copy(blob, tmp_path / "TINY.GGUF")
    else:
        path = tmp_path / "snapshot" / ("tiny.Q8_0.gguf" if given == "folder" else given)
        path.symlink_to("../blobs/5f1d")
    path = path.parent if given == "folder" else path
    fetch(FolderSource(str(path)), tmp_path / "output")
    receipt = read_json(tmp_path / "output/source.json")
    (name,) = receipt["converted_from"]["files"]
    assert source_files(path) == [str(Path(receipt["converted_from"]["root"]) / name)]
    assert np.array_equal(
        open_checkpoint(tmp_path / "output").read_rows("model.norm.weight", 0, 4),
        tiny.model.model.norm.weight.detach().numpy()[:4],
    )


def test_an_adapter_alone_names_its_base(tmp_path: Path) -> None:
    folder = write(tmp_path / "lora", ADAPTER)
    with pytest.raises(AxzooError, match=r"lora contains an adapter of 'org/base', not a model: merge it .*peft"):
        find_checkpoint(folder)
    with (
        serving(Hub("org/model", {name: written(name, content) for name, content in ADAPTER.items()})) as hub,
        pytest.raises(AxzooError, match="org/model at main contains an adapter of 'org/base', not a model"),
    ):
        fetch_hub(SOURCE, tmp_path / "output", hub.endpoint)


def test_removing_the_adapter_builds_the_model_without_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "both", CONFIG | {SAFE: w(1)} | ADAPTER)
    (folder / "adapter_config.json").unlink()
    assert values(folder) == {"w": 1}


def test_a_leftover_index_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "both", CONFIG | {SAFE: w(1)} | OLD | OLD_INDEX)
    fetch(FolderSource(str(folder)), tmp_path / "output")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"using {SAFE} of {folder}, as transformers does, and not {min(OLD)}" in warning


def test_a_gguf_repository(tiny: Tiny, tmp_path: Path) -> None:
    q8, other = (tiny.write(tmp_path / name).read_bytes() for name in ("tiny-Q8_0.gguf", "tiny-Q4_0.gguf"))
    files = {"README.md": b"words", "tiny-Q8_0.gguf": q8}
    with serving(Hub("org/model", files)) as hub:
        fetch_hub(SOURCE, tmp_path / "one", hub.endpoint)
        hub.files["tiny-Q4_0.gguf"] = other[:100]
        with pytest.raises(AxzooError, match=r"2 GGUF files .*: name the one to convert with --file"):
            fetch_hub(SOURCE, tmp_path / "two", hub.endpoint)
        with pytest.raises(AxzooError, match=r"contains no GGUF file Q8: it contains tiny-Q4_0.gguf, tiny-Q8_0.gguf"):
            fetch_hub(HubSource("org/model", "main", "Q8"), tmp_path / "two", hub.endpoint)
        named = HubSource("org/model", "main", "tiny-Q8_0.gguf")
        fetch_hub(named, tmp_path / "two", hub.endpoint)
        hub.files[SAFE] = written(SAFE, w(1))  # beside other weights, too
        fetch_hub(named, tmp_path / "three", hub.endpoint)
    for folder in ("one", "two", "three"):
        assert sorted(read_json(tmp_path / folder / "source.json")["files"]) == sorted(
            path.name for path in (tmp_path / folder).iterdir() if path.name != "source.json"
        )
        assert (tmp_path / folder / SAFE).read_bytes() == (tmp_path / "one" / SAFE).read_bytes()
    assert read_json(tmp_path / "two/source.json")["source"]["file"] == "tiny-Q8_0.gguf"


@pytest.mark.parametrize("how", ["a fetched folder", "a folder in place"])
def test_the_remedy_for_a_damaged_file_works_as_printed(how: str, tmp_path: Path) -> None:
    """Fetching again alone does not restore a file of the right size, so the folder must be removed first."""
    files = CONFIG | {SAFE: w(1)}
    good = written(SAFE, w(1))
    with serving(Hub("org/model", {name: written(name, content) for name, content in files.items()})) as hub:
        if how == "a fetched folder":
            folder = tmp_path / "fetched"
            fetch_hub(SOURCE, folder, hub.endpoint)
        else:
            folder = write(tmp_path / "given", files)
        (folder / SAFE).write_bytes(bytes(len(good)))
        with pytest.raises(AxzooError) as error:
            open_checkpoint(folder)
        if how == "a fetched folder":
            assert str(error.value).endswith(f": remove the folder {folder} and fetch it again")
            shutil.rmtree(folder)
            fetch_hub(SOURCE, folder, hub.endpoint)
        else:
            assert str(error.value).endswith(": copy or download the file again")
            (folder / SAFE).write_bytes(good)
    assert values(folder) == {"w": 1}


def _checkpoint_with_tokenizer(folder: Path) -> Path:
    return write(folder, {SAFE: w(1), "config.json": "{}", "tokenizer.json": "{}", "README.md": "x"})


COPIED = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json"]


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("target", ["../secret", "/etc/hostname", "inner/../../secret", "via"])
def test_a_link_out_of_the_checkpoint_is_not_published(tmp_path: Path, name: str, target: str) -> None:
    """Files of the tokenizer are copied into bundles, so a link must not bring in another file of this machine."""
    (tmp_path / "secret").write_text('{"password": "x"}')
    folder = _checkpoint_with_tokenizer(tmp_path / "check point")
    (folder / "inner").mkdir()
    (folder / "via").symlink_to("../secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    with pytest.raises(AxzooError) as caught:
        find_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / name} is a link to ")
    (command,) = re.findall(r"`(cp .*)`", message)
    subprocess.run(command, shell=True, check=True)  # the advice works as printed
    assert not (folder / name).is_symlink()
    assert find_checkpoint(folder).folder == folder


@pytest.mark.parametrize("name", COPIED)
def test_links_within_the_checkpoint_and_the_hub_cache(tmp_path: Path, name: str) -> None:
    folder = _checkpoint_with_tokenizer(tmp_path / "here")
    (folder / "real").mkdir()
    (folder / "real/file").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("real/file")
    assert find_checkpoint(folder)
    snapshot = _checkpoint_with_tokenizer(tmp_path / "hub/models--org--x/snapshots/0123")
    write(tmp_path / "hub/models--org--x/blobs", {"5f1d": "{}"})
    (snapshot / name).unlink(missing_ok=True)
    (snapshot / name).symlink_to("../../blobs/5f1d")
    assert find_checkpoint(snapshot)
    (tmp_path / "current").symlink_to(snapshot)  # the folder itself may be a link, to a folder
    assert find_checkpoint(tmp_path / "current")
    fetch(FolderSource(str(tmp_path / "current")), tmp_path / "output")


@pytest.mark.parametrize("target", ["../../../other/blobs/5f1d", "../../refs/main", "../../../../secret"])
def test_other_places_of_the_hub_cache_are_outside(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("{}")
    write(tmp_path / "hub/other/blobs", {"5f1d": "{}"})
    write(tmp_path / "hub/models--org--x/refs", {"main": "{}"})
    snapshot = _checkpoint_with_tokenizer(tmp_path / "hub/models--org--x/snapshots/0123")
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(target)
    with pytest.raises(AxzooError, match="which is outside the checkpoint"):
        find_checkpoint(snapshot)


def test_blobs_that_are_a_link_do_not_widen_the_cache(tmp_path: Path) -> None:
    """An unpacked archive from a stranger can look like the hub's cache."""
    write(tmp_path / "secrets", {"key": "{}"})
    snapshot = _checkpoint_with_tokenizer(tmp_path / "models--org--x/snapshots/0123")
    (snapshot.parents[1] / "blobs").symlink_to(tmp_path / "secrets")
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("../../blobs/key")
    with pytest.raises(AxzooError, match="which is outside the checkpoint"):
        find_checkpoint(snapshot)


def test_weights_may_be_links_to_another_disk(tmp_path: Path) -> None:
    folder = _checkpoint_with_tokenizer(tmp_path / "here")
    (folder / SAFE).rename(tmp_path / "shared.safetensors")
    (folder / SAFE).symlink_to("../shared.safetensors")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")  # only its licence is read
    assert values(folder) == {"w": 1}
    fetch(FolderSource(str(folder)), tmp_path / "output")
