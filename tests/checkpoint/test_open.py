"""Which files of a folder open_checkpoint reads, and that the lock does not depend on the format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.gptq import GptqCheckpoint
from axzoo.checkpoint.tensors import Array, Checkpoint
from axzoo.core.errors import AxzooError
from axzoo.parts.lock import make_lock
from tiny_model import DTYPES, LAYERS
from tiny_model import Checkpoint as Tiny

PICKLED, SAFE = "pytorch_model.bin", "model.safetensors"


def _value(checkpoint: Checkpoint) -> float:
    rows: Array = checkpoint.read_rows("w", 0, 1)
    return float(rows[0])


def _index(folder: Path, name: str, shard: str) -> None:
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))


def test_safetensors_come_before_pickles_and_one_file_before_shards(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([1.0])}, tmp_path / "pytorch_model-1.bin")
    _index(tmp_path, PICKLED, "pytorch_model-1.bin")
    assert _value(open_checkpoint(tmp_path)) == 1.0
    torch.save({"w": torch.tensor([2.0])}, tmp_path / PICKLED)
    assert _value(open_checkpoint(tmp_path)) == 2.0
    save_file({"w": torch.tensor([3.0])}, tmp_path / "model-1.safetensors")
    _index(tmp_path, SAFE, "model-1.safetensors")
    assert _value(open_checkpoint(tmp_path)) == 3.0
    save_file({"w": torch.tensor([4.0])}, tmp_path / SAFE)
    assert _value(open_checkpoint(tmp_path)) == 4.0


@pytest.mark.parametrize("name", [None, "pytorch_model.pt", "tf_model.h5", "model.safetensors.json"])
def test_no_weights(tmp_path: Path, name: str | None) -> None:
    if name:
        (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(
        AxzooError, match=r"no weights that axzoo can read: neither model\.safetensors nor pytorch_model\.bin"
    ) as error:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_pickled_model_locks_like_its_safetensors(checkpoint: Tiny, tmp_path: Path, dtype: str, shards: int) -> None:
    stored = {name: value.to(DTYPES[dtype]) for name, value in load_file(checkpoint.folder / SAFE).items()}
    folders = {name: tmp_path / name for name in ("safe", "pickled")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "config.json").write_bytes((checkpoint.folder / "config.json").read_bytes())
    save_file(stored, folders["safe"] / SAFE)
    if shards == 1:
        torch.save(stored, folders["pickled"] / PICKLED)
    else:
        names = [f"pytorch_model-{number + 1:05}-of-{shards:05}.bin" for number in range(shards)]
        placed = {name: names[number % shards] for number, name in enumerate(stored)}
        for shard in names:
            held = {name: value for name, value in stored.items() if placed[name] == shard}
            torch.save(held, folders["pickled"] / shard)
        (folders["pickled"] / f"{PICKLED}.index.json").write_text(json.dumps({"weight_map": placed}))
    assert make_lock(folders["pickled"], "llama", LAYERS) == make_lock(folders["safe"], "llama", LAYERS)


@pytest.mark.parametrize("pickled", [True, False])
def test_gptq_wraps_either_format(tmp_path: Path, pickled: bool) -> None:
    stored = {
        "w.qweight": torch.full((2, 8), 0x11111111, dtype=torch.int32),
        "w.qzeros": torch.full((1, 1), 0x77777777, dtype=torch.int32),
        "w.scales": torch.full((1, 8), 0.5, dtype=torch.float16),
        "w.g_idx": torch.zeros(16, dtype=torch.int32),
    }
    if pickled:
        torch.save(stored, tmp_path / PICKLED)
    else:
        save_file(stored, tmp_path / SAFE)
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    checkpoint = open_checkpoint(tmp_path)
    assert isinstance(checkpoint, GptqCheckpoint)
    assert np.array_equal(checkpoint.read_rows("w.weight", 0, 8), np.full((8, 16), (1 - 8) * 0.5))


def test_only_pickles_import_torch(tmp_path: Path) -> None:

    save_file({"w": torch.tensor([1.0])}, tmp_path / SAFE)
    code = (
        "import sys; from pathlib import Path; from axzoo.checkpoint import open_checkpoint; "
        "open_checkpoint(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
