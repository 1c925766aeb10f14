from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from axzoo.core.errors import AxzooError
from axzoo.runtime.buffers import Embedding, ExtraRows


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


def test_extra_rows_keep_what_a_prompt_can_have(tmp_path: Path) -> None:
    path = tmp_path / "embedding.bin"
    np.zeros((4, 2), np.uint16).tofile(path)
    extra = ExtraRows(Embedding(path, 4, 2), max_rows=6)
    blocks = [np.full((2, 2), number, ml_dtypes.bfloat16) for number in range(1, 7)]
    used = extra.add(blocks[0], ())
    later = [extra.add(block, used) for block in blocks[1:]]
    for ids, block in zip([used, *later[-3:]], [blocks[0], *blocks[-3:]], strict=True):
        np.testing.assert_array_equal(extra.rows(ids), block)
    with pytest.raises(AxzooError, match=f"token id {later[0][0]} is out of range"):
        extra.rows(later[0])
    assert extra.add(blocks[-1].copy(), used) == later[-1]
