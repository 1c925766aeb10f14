from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from axzoo.core.errors import AxzooError
from axzoo.runtime.buffers import Embedding


@pytest.mark.parametrize("mmap", [True, False])
def test_rows(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "embed.bin"
    path.write_bytes(bytes.fromhex("803f 0040 4040 8040 a040 c040".replace(" ", "")))  # 1..6 in bf16
    rows = Embedding(path, 3, 2, mmap).rows([2, 0, 2])
    assert rows.dtype == ml_dtypes.bfloat16
    assert rows.tolist() == [[5, 6], [1, 2], [5, 6]]
    rows[:] = 0  # rows() returns a copy: the file does not change
    assert Embedding(path, 3, 2).rows([0]).tolist() == [[1, 2]]


def test_only_the_requested_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "embed.bin"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of 1 TiB, too large to read
    assert not Embedding(path, 1 << 30, 512).rows([0, (1 << 30) - 1]).astype(np.float32).any()


@pytest.mark.parametrize("ids", [[3], [0, -1], [1 << 40]])
def test_ids_out_of_range_are_refused(tmp_path: Path, ids: list[int]) -> None:
    path = tmp_path / "embed.bin"
    path.write_bytes(bytes(12))
    with pytest.raises(AxzooError, match="is out of range: the embedding has ids 0 to 2"):
        Embedding(path, 3, 2).rows(ids)


@pytest.mark.parametrize("size", [0, 10, 14])
def test_a_file_of_the_wrong_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "embed.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(AxzooError, match=f"has {size} bytes, but 3 rows of 2 bf16 values take 12"):
        Embedding(path, 3, 2)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"embed\.bin is missing"):
        Embedding(tmp_path / "embed.bin", 3, 2)


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "embed.bin"
    path.write_bytes(b"")
    with pytest.raises(AxzooError, match="0 bytes"):
        Embedding(path, 0, 2)
