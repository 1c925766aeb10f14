"""Readers of files from strangers open regular files only: a pipe would block them for ever, a device never ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from axzoo.backends.host.inspection import inspect_file
from axzoo.bundle.archive import pack, unpack
from axzoo.bundle.bill_of_materials import licences
from axzoo.bundle.manifest import read_manifest
from axzoo.bundle.verification import deviations
from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.gguf.reader import GgufCheckpoint
from axzoo.checkpoint.local_files import find_checkpoint
from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, open_regular, read_bytes, read_json, require_regular, sha256_of
from axzoo.fetch.sources import checkpoint_folder
from axzoo.matrix.chips import load_chips
from axzoo.matrix.entries import load_zoo
from axzoo.model.reading import read_spec
from axzoo.parts.part import read_part
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.images import read_picture
from axzoo.runtime.post_config import read_post_config
from axzoo.tokenizer.local import load_tokenizer
from tiny_model import Built, Checkpoint

ROOT = Path(__file__).parents[1]
KINDS = ("pipe", "device", "link to a pipe", "link to a device", "socket", "folder")
IRREGULAR = (
    "(a pipe, a socket or a device: replace it by a regular file|a folder, but a file is needed"
    "|not a regular file, or a link to nothing: replace it by a file, or remove it"
    "|not a regular file: a checkpoint consists of files)"
)
"""What a message says of the file, as a regular expression."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in a block that waits for ever."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits for a writer")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def put(kind: str, path: Path) -> None:
    """Put something at `path` that is not a regular file."""
    if path.is_file():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "link to a device"):  # tests may not create devices
        path.symlink_to("/dev/zero")
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("the-pipe"))
        path.symlink_to("the-pipe")
    elif kind == "socket":
        folder = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as listener:  # its path may have only 107 bytes
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [open_regular, sha256_of, read_json, lambda path: read_bytes(path, 9), has_file])
def test_the_guarded_functions(tmp_path: Path, kind: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "x.json"
    put(kind, path)
    with within(5), pytest.raises(AxzooError, match=rf"x\.json is {IRREGULAR}"):
        read(path)


def test_regular_files_and_links_to_them_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        require_regular(tmp_path / name)
        assert has_file(tmp_path / name)
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"
            assert not os.get_inheritable(file.fileno())
    assert not has_file(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        open_regular(tmp_path / "none")
    (tmp_path / "nothing").symlink_to("nowhere")
    with pytest.raises(AxzooError, match="nothing is not a regular file, or a link to nothing"):
        has_file(tmp_path / "nothing")


def test_a_pipe_that_takes_the_place_of_a_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was opened is examined, not the path."""
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    original = os.open

    def exchanged(name: str, flags: int) -> int:
        put("pipe", path)
        return original(name, flags)

    monkeypatch.setattr(os, "open", exchanged)
    with within(5), pytest.raises(AxzooError, match=f"is {IRREGULAR}"):
        read_bytes(path, 9)


def _gguf(folder: Path) -> object:
    return GgufCheckpoint(folder / "x.gguf")


CHECKPOINT: dict[str, Callable[[Path], object]] = {
    "config.json": lambda folder: read_spec(folder, "llama", 2, ()),
    "model.safetensors": open_checkpoint,
    "tokenizer.json": load_tokenizer,
    "tokenizer_config.json": load_tokenizer,
    "special_tokens_map.json": load_tokenizer,
    "added_tokens.json": load_tokenizer,
    "generation_config.json": load_tokenizer,
    "chat_template.jinja": load_tokenizer,
    "quantize_config.json": open_checkpoint,
    "source.json": lambda folder: checkpoint_folder(folder / "source.json"),
    "README.md": licences,
}


@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
@pytest.mark.parametrize("name", CHECKPOINT)
def test_files_of_a_checkpoint(checkpoint: Checkpoint, tmp_path: Path, name: str, kind: str) -> None:
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "checkpoint"))
    put(kind, folder / name)
    with within(20), pytest.raises(AxzooError, match=f"{name} is (not a (regular )?file|a (pipe|folder))"):
        CHECKPOINT[name](folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_llm_build_refuses_them(
    checkpoint: Checkpoint, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "checkpoint"))
    put("pipe", folder / name)
    capfd.readouterr()
    with within(20):
        assert main(["llm_build", "--input_path", str(folder), "--output_path", str(tmp_path / "out")]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{folder / name} is not a regular file: a checkpoint consists of files" in err


def test_a_shard_that_is_a_pipe_does_not_hang_the_lock(
    checkpoint: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "checkpoint"))
    put("pipe", folder / "model.safetensors")
    model = ["--model_type", "llama", "--num_hidden_layers", "2", "--source", str(folder / "source.json")]
    with within(20):
        assert main(["lock", *model, "--output", str(tmp_path / "lock")]) == 1
    assert (
        f"{folder / 'model.safetensors'} is not a regular file: a checkpoint consists of files"
        in capfd.readouterr().err
    )
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "x.gguf"])
def test_weights_of_other_formats(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    put("pipe", tmp_path / name)
    with within(20), pytest.raises(AxzooError, match=f"{name} is {IRREGULAR}"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_a_gguf_file(tmp_path: Path, kind: str) -> None:
    put(kind, tmp_path / "x.gguf")
    for path in (tmp_path / "x.gguf", tmp_path):
        with within(5), pytest.raises(AxzooError, match=rf"x\.gguf is {IRREGULAR}"):
            find_checkpoint(path) if path.suffix else _gguf(path)
    put(kind, tmp_path / "named" / "without-suffix")
    with within(5), pytest.raises(AxzooError, match=f"without-suffix is {IRREGULAR}"):
        find_checkpoint(tmp_path / "named" / "without-suffix")


BUNDLE: dict[str, Callable[[Path], object]] = {
    "manifest.json": read_manifest,
    "config.json": open_bundle,
    "post_config.json": lambda folder: read_post_config(folder / "post_config.json"),
    "tokenizer/tokenizer.json": lambda folder: load_tokenizer(folder / "tokenizer"),
    "llama_post.axmodel": lambda folder: InferenceSession(folder / "llama_post.axmodel"),
}


@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
@pytest.mark.parametrize("name", BUNDLE)
def test_files_of_a_bundle(s8: Built, tmp_path: Path, name: str, kind: str) -> None:
    from axzoo.bundle.completion import complete_bundle

    built = s8.moved(tmp_path / "bundle")
    complete_bundle(built.plan)
    put(kind, built.folder / name)
    with within(20), pytest.raises(AxzooError, match=f"{Path(name).name} is (not a |a pipe|missing)"):
        BUNDLE[name](built.folder)
    with within(20):
        if name == "manifest.json":
            with pytest.raises(AxzooError, match=r"manifest\.json"):
                list(deviations(built.folder))
        else:
            assert [str(found) for found in deviations(built.folder) if Path(name).name in str(found)]
    with within(20), pytest.raises(AxzooError):
        pack(built.folder, tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "chips.yaml").write_text((ROOT / "config/chips.yaml").read_text())
    (tmp_path / "zoo.yaml").write_text((ROOT / "config/demo.yaml").read_text())
    readers: dict[str, Callable[[Path], object]] = {
        "matrix.yaml": lambda path: load_zoo(path, tmp_path / "chips.yaml"),
        "pipe-chips.yaml": load_chips,
        "picture.png": read_picture,
        "layer_0.json": read_part,
        "embedding.bin": lambda path: Embedding(path, 2, 2),
        "x.axmodel": inspect_file,
        "archive.tar": lambda path: unpack(path, tmp_path / "unpacked"),
        "with-chips": lambda path: load_zoo(tmp_path / "zoo.yaml", path),
    }
    for name, read in readers.items():
        put("pipe", tmp_path / name)
        with within(5), pytest.raises(AxzooError, match=f"{name} is (not a (regular )?file|a (pipe|folder))"):
            read(tmp_path / name)
    assert not (tmp_path / "unpacked").exists()


def test_run_refuses_a_picture_that_is_a_pipe(tmp_path: Path) -> None:
    for kind, name in zip(KINDS, "abcdef", strict=True):
        put(kind, tmp_path / name / "p.png")
        with within(5), pytest.raises(AxzooError, match=r"p\.png is not a file: pass a picture"):
            read_picture(tmp_path / name / "p.png")


def test_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40))
    os.truncate(path, 1 << 40)
    with within(5), pytest.raises(AxzooError, match="is damaged or incomplete"):
        open_checkpoint(tmp_path)
