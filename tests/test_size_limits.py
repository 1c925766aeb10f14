"""Every reader of untrusted files has a size limit and rejects larger files before reading them.

The files here are sparse. config/chips.yaml and matrices are tested in matrix/test_document.py, archives in
bundle/test_archive.py.
"""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from axzoo.backends.host.inspection import inspect_file
from axzoo.bundle.manifest import read_manifest
from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.gguf.reader import read_header
from axzoo.core.errors import AxzooError
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.reading import read_spec
from axzoo.parts.part import read_part
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.runtime.post_config import read_post_config
from axzoo.tokenizer.local import load_tokenizer

IMPLAUSIBLE = r"/{} has \d+ bytes, but at most \d+ are plausible for this file"
MB = 1 << 20

LIMITS: dict[str, tuple[int, Callable[[Path], object], str]] = {
    "config.json": (64, lambda folder: read_spec(folder, "llama", 2, ()), IMPLAUSIBLE),
    "model.safetensors.index.json": (64, open_checkpoint, IMPLAUSIBLE),
    "pytorch_model.bin.index.json": (64, open_checkpoint, IMPLAUSIBLE),
    "quantize_config.json": (64, open_checkpoint, IMPLAUSIBLE),
    "source.json": (64, lambda folder: checkpoint_folder(folder / "source.json"), IMPLAUSIBLE),
    "layer_0.json": (64, lambda folder: read_part(folder / "layer_0.json"), IMPLAUSIBLE),
    "post_config.json": (64, lambda folder: read_post_config(folder / "post_config.json"), IMPLAUSIBLE),
    "manifest.json": (8, read_manifest, IMPLAUSIBLE),
    "tokenizer.json": (128, load_tokenizer, IMPLAUSIBLE),
    "tokenizer_config.json": (64, load_tokenizer, IMPLAUSIBLE),
    "generation_config.json": (64, load_tokenizer, IMPLAUSIBLE),
    "chat_template.jinja": (4, load_tokenizer, IMPLAUSIBLE),
    "tokenizer.model": (64, load_tokenizer, r"/{} "),
}
"""By file name: the limit in MiB, the function that reads the file, and the message."""


def assert_rejected(read: Callable[[], object], message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(AxzooError, match=message):
            read()
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", LIMITS)
def test_file_above_its_limit(tmp_path: Path, name: str) -> None:
    limit, read, message = LIMITS[name]
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, limit * MB + 1)
    assert_rejected(lambda: read(tmp_path), message.format(name.replace(".", r"\.")))


def test_config_of_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 64 * MB + 1)
    assert_rejected(lambda: open_bundle(tmp_path), "bytes, but at most .* are plausible for this file")


def test_headers_of_large_files(tmp_path: Path) -> None:
    """The files are as large as their headers claim, but the headers exceed the limit."""
    safetensors, gguf = tmp_path / "model.safetensors", tmp_path / "x.gguf"
    safetensors.write_bytes(struct.pack("<Q", 101_000_000))
    gguf.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 257 * MB))
    for path in (safetensors, gguf):
        os.truncate(path, 300 * MB)
    assert_rejected(lambda: open_checkpoint(tmp_path), r"model\.safetensors is damaged or incomplete")
    assert_rejected(lambda: read_header(gguf), "a field of 269484032 bytes at 32 goes beyond the end")


def test_pickle_above_its_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", bytes(16 * MB + 1))
    assert_rejected(
        lambda: open_checkpoint(tmp_path), "contains a pickle of 16777217 bytes, but at most 16777216 are plausible"
    )


def test_metadata_of_an_axmodel(tmp_path: Path) -> None:
    """The protobuf contains ir_version, an empty graph and a metadata entry with a value of 17 MB."""
    value = b"\x12" + _varint(17 * MB)
    entry = b"\x0a\x05axzoo" + value
    (tmp_path / "x.axmodel").write_bytes(b"\x08\x0b\x3a\x00\x72" + _varint(len(entry) + 17 * MB) + entry)
    os.truncate(tmp_path / "x.axmodel", 5 + len(_varint(len(entry) + 17 * MB)) + len(entry) + 17 * MB)
    assert_rejected(lambda: inspect_file(tmp_path / "x.axmodel"), "a string of more than 16777216 bytes")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 128:
        out.append(number % 128 | 128)
        number //= 128
    return bytes([*out, number])
