"""The embedding files that ax-llm-build's tools write: .npy and .float32.bin first, .bfloat16.bin from those.

The table is processed in blocks of rows. The checkpoint is reopened for each block: its files are memory-mapped, and
only closing them releases the pages read so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.local_files import find_checkpoint, remedy
from axzoo.checkpoint.tensors import Checkpoint, row_blocks
from axzoo.core.errors import AxzooError
from axzoo.core.files import atomic_path, open_regular, read_json, require_space
from axzoo.model.config_view import ConfigView
from axzoo.model.families import load_family
from axzoo.model.spec import TensorRef
from axzoo.model.text_parts import language_model_config
from axzoo.parts.tensor_names import model_names
from axzoo.weights.bf16 import Bf16Rounding, nearest_even, write_embedding

NAME = "model.embed_tokens.weight"
NPY, FLOAT32, BFLOAT16 = f"{NAME}.npy", f"{NAME}.float32.bin", f"{NAME}.bfloat16.bin"
_NPY_MAGIC = b"\x93NUMPY"
BLOCK_BYTES = 32 << 20
"""Size of a block in fp32."""


def extract_embedding(source: Path, output: Path, rounding: Bf16Rounding = nearest_even) -> tuple[Path, ...]:
    """Writes NPY (fp32 [vocab_size, hidden_size]), FLOAT32 and BFLOAT16 (raw, little-endian) into the folder `output`.

    `source` is a checkpoint folder or a GGUF file. The fp32 values equal the checkpoint's; `rounding` converts them to
    bf16. Either all files are written or none. Returns their paths. Raises AxzooError when the checkpoint is damaged,
    its model_type is unknown, the embedding is missing or does not have the shape its config requires, or the disk is
    full.
    """
    table = _embed_tensor(source)
    output.mkdir(parents=True, exist_ok=True)
    require_space(output, table.shape[0] * table.shape[1] * (4 + 4 + 2))
    files = tuple(output / name for name in (NPY, FLOAT32, BFLOAT16))
    with ExitStack() as stack:
        paths = [stack.enter_context(atomic_path(file)) for file in files]
        npy, fp32, bf16 = (stack.enter_context(path.open("wb")) for path in paths)
        np.lib.format.write_array_header_1_0(npy, {"descr": "<f4", "fortran_order": False, "shape": table.shape})
        for block in _blocks(source, table):
            exact = np.ascontiguousarray(block, np.float32)
            npy.write(exact.data)
            fp32.write(exact.data)
            write_embedding([block], bf16, rounding)
    return files


def fp32_to_bf16(source: Path, output: Path, rounding: Bf16Rounding = nearest_even) -> None:
    """Converts a file of raw little-endian fp32 to bf16.

    Raises AxzooError when the size of `source` is not a multiple of four bytes, when it is an .npy file, or when
    `output` is the same file or a folder.
    """
    if output.is_dir():
        raise AxzooError(f"{output} is a folder: name the file to write, like {output / BFLOAT16}")
    if source.exists() and output.exists() and output.samefile(source):
        raise AxzooError(f"{output} is the input file {source}: choose another output file")

    def blocks() -> Iterator[NDArray[Any]]:
        while data := file.read(BLOCK_BYTES):
            if len(data) % 4:
                raise AxzooError(f"{source} is not a file of fp32 numbers: its size is not a multiple of 4 bytes")
            yield np.frombuffer(data, "<f4")

    with open_regular(source) as file:
        if file.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
            raise AxzooError(f"{source} is an .npy file, which has a header: use the .float32.bin beside it")
        file.seek(0)
        with atomic_path(output) as path, path.open("wb") as target:
            write_embedding(blocks(), target, rounding)


def _embed_tensor(source: Path) -> TensorRef:
    """The family's embedding tensor, under its name in the files.

    Raises AxzooError unless the checkpoint has it with the required shape.
    """
    config, where = _config(source)
    family = load_family(str(config.get("model_type")))
    try:
        spec = family.decoder_spec(ConfigView(config, where))
    except AxzooError as error:
        raise error if str(where) in str(error) else AxzooError(f"{where}: {error}") from None
    table = family.embed_tensor(spec)
    tensors = _open(source).tensors
    name = model_names(tensors, {table.name}, table.name).get(table.name)
    if name is None:
        raise AxzooError(f"{source} has no tensor {table.name}, the embedding of a {spec.model_type} model")
    if tensors[name].shape != table.shape:
        raise AxzooError(
            f"{source}: tensor {name} has shape {list(tensors[name].shape)}, but {where} requires {list(table.shape)}"
        )
    return replace(table, name=name)


def _config(source: Path) -> tuple[dict[str, Any], Path]:
    """The content of config.json, or its equivalent in a GGUF file, and the file to name in messages."""
    gguf = find_checkpoint(source).gguf
    if gguf is not None:
        from axzoo.checkpoint.gguf.conversion import model_config
        from axzoo.checkpoint.gguf.reader import GgufCheckpoint

        return model_config(GgufCheckpoint(gguf)), gguf
    path = source / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise AxzooError(f"{path} is not a mapping: {remedy(source)}")
    return language_model_config(config, path), path


def _open(source: Path) -> Checkpoint:
    gguf = find_checkpoint(source).gguf
    if gguf is not None:
        from axzoo.checkpoint.gguf.reader import GgufCheckpoint

        return GgufCheckpoint(gguf)
    return open_checkpoint(source)


def _blocks(source: Path, table: TensorRef) -> Iterator[NDArray[Any]]:
    rows, columns = table.shape
    step = max(1, BLOCK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        yield from row_blocks(_open(source), table.name, start, min(start + step, rows))
