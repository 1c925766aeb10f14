"""The same bytes as the safetensors library writes, without holding all tensors in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from axzoo.checkpoint.tensors import Array, TensorInfo
from axzoo.checkpoint.writing import write_safetensors

CODES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class InMemory:
    arrays: Mapping[str, Array]
    code: str

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(name, "-", self.code, array.shape) for name, array in self.arrays.items()}

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        return self.arrays[name][start:stop]


@settings(deadline=None)
@given(
    shapes=st.dictionaries(
        st.text("abc.0é", min_size=1, max_size=9), st.lists(st.integers(1, 5), min_size=1, max_size=3)
    ),
    code=st.sampled_from(list(CODES)),
)
def test_the_librarys_bytes(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], code: str) -> None:
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(CODES[code]) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("writer") / "model.safetensors"
    write_safetensors(path, InMemory(arrays, code))
    assert path.read_bytes() == safetensors.numpy.save(arrays, metadata={"format": "pt"})


def test_large_tensors_are_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axzoo.checkpoint.tensors.BLOCK_BYTES", 100)
    arrays = {"big": np.arange(3000, dtype=np.float32).reshape(300, 10), "row": np.arange(70, dtype=np.float32)}
    write_safetensors(tmp_path / "model.safetensors", InMemory(arrays, "F32"))
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert all((found[name] == arrays[name]).all() for name in arrays)
