"""Reading and hashing tensors in blocks of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from numpy.testing import assert_array_equal

from axzoo.checkpoint import tensors
from axzoo.checkpoint.tensors import DTYPES, Array, TensorInfo, row_blocks
from axzoo.core.errors import AxzooError
from axzoo.model.spec import TensorRef
from axzoo.parts.lock import digest_rows
from axzoo.parts.part import LockedTensor

NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class InMemory:
    """A checkpoint of arrays in memory that counts the rows read."""

    def __init__(self, **arrays: Array) -> None:
        self._arrays = arrays
        self.reads: list[tuple[int, int]] = []
        self.tensors = {
            name: TensorInfo(name, "memory", NAMES.get(array.dtype, str(array.dtype)), array.shape)
            for name, array in arrays.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        self.reads.append((start, stop))
        rows: Array = self._arrays[name][start:stop]
        return rows


def _digest(array: Array, rows: tuple[int, int] | None = None) -> LockedTensor:
    return digest_rows(Path("there"), InMemory(w=array), TensorRef("w", array.shape, rows))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (1, 1), (4, 2, 3)])
def test_blocks_are_the_tensor(monkeypatch: pytest.MonkeyPatch, dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    row_bytes = array.nbytes // shape[0]
    whole = _digest(array)
    assert whole.blake3 == blake3(f"{NAMES[array.dtype]}{list(shape)}".encode() + array.tobytes()).hexdigest()
    for block_bytes in (1, row_bytes, 2 * row_bytes + 1, 10**6):
        monkeypatch.setattr(tensors, "BLOCK_BYTES", block_bytes)
        checkpoint = InMemory(w=array)
        assert_array_equal(np.concatenate(list(row_blocks(checkpoint, "w", 0, shape[0]))), array)
        assert max(stop - start for start, stop in checkpoint.reads) <= max(1, block_bytes // row_bytes)
        assert _digest(array) == whole


def test_hashes_agree_with_the_published_vectors() -> None:
    """From BLAKE3's test_vectors.json: the empty input, and the bytes 0, 1, 2."""
    assert blake3(b"").hexdigest() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3(bytes(range(3))).hexdigest() == "e1be4d7a8ab5560aa4199eea339849ba8e293d55ca0a81006726d184519e647f"


@pytest.mark.parametrize("block_bytes", [1, 25, 10**6])
@pytest.mark.parametrize("start, stop", [(0, 7), (0, 3), (3, 7), (6, 7), (2, 2)])
def test_a_slice_of_rows_is_a_tensor_by_itself(
    monkeypatch: pytest.MonkeyPatch, start: int, stop: int, block_bytes: int
) -> None:
    """A projection in a fused tensor hashes like one stored separately, and reads no other rows."""
    array = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block_bytes)
    found = _digest(array, (start, stop))
    assert (found.rows, found.shape) == ((start, stop), (stop - start, 3))
    assert found.blake3 == _digest(array[start:stop]).blake3
    checkpoint = InMemory(w=array)
    read = list(row_blocks(checkpoint, "w", start, stop))
    assert_array_equal(np.concatenate([array[:0], *read]), array[start:stop])
    assert all(start <= first <= last <= stop for first, last in checkpoint.reads)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_one_value_that_is_not_finite_is_detected(dtype: Any, value: float) -> None:
    array = np.zeros((5, 4), dtype)
    _digest(array)
    array[4, 3] = value
    with pytest.raises(AxzooError, match=r"there/memory: tensor w contains NaN or infinity: .* damaged"):
        _digest(array)
    _digest(array, (0, 4))


def test_the_hash_includes_dtype_and_shape() -> None:
    zeros = np.zeros((2, 6), np.float32)
    same_bytes: list[Array] = [zeros, zeros.reshape(6, 2), zeros.reshape(12), np.zeros((2, 12), np.float16)]
    same_bytes.append(np.zeros((2, 12), ml_dtypes.bfloat16))
    assert len({array.tobytes() for array in same_bytes}) == 1
    assert len({_digest(array).blake3 for array in same_bytes}) == 5


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint8, np.bool_])
def test_an_unsupported_dtype(dtype: Any) -> None:
    with pytest.raises(
        AxzooError, match=f"memory: tensor w has dtype {np.dtype(dtype)}, but must have one of F32, F16, BF16"
    ):
        list(row_blocks(InMemory(w=np.zeros((2, 2), dtype)), "w", 0, 2))
