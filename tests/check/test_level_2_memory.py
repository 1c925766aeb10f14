"""Peak memory of level 2: a deeper model takes at most 1.3 bytes more per byte of its bundle."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from axzoo.bundle.completion import complete_bundle
from axzoo.weights.recipe import Recipe
from tiny_model import build, make_checkpoint

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "initializer_range": 0.03,
}
RECIPE = Recipe(prefill_len=8, kv_cache_len=63)

FP32_COPIES = """
import numpy as np
from axzoo.core.dtypes import ONNX_DTYPES
from axzoo.runtime.exact import stages
usual = stages._matrix
def in_fp32(view, scales):
    matrix = usual(view, scales)
    numbers = matrix.values.view(np.int8).reshape(matrix.shape) * matrix.scales
    return stages.Matrix(ONNX_DTYPES["fp32"], matrix.shape, numbers.reshape(-1).view(np.uint8), None)
stages._matrix = in_fp32
"""
"""A fault: the engine keeps weights in fp32."""
WHOLE_MODEL = """
from axzoo.model.oracle import Oracle
from axzoo.parts import checkpoint_oracle as module
kept = []
usual = module.CheckpointWeights.rows
def rows(self, role):
    kept.extend(blocks := list(usual(self, role)))
    return iter(blocks)
module.CheckpointWeights.rows = rows
"""
"""A fault: the oracle keeps the weights that it has read."""
RUN = """
import sys
from axzoo.cli import main
status = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


def _bundle(folder: Path, layers: int) -> Path:
    checkpoint = make_checkpoint(folder / "checkpoint", {**SHAPE, "num_hidden_layers": layers}, dtype="BF16")
    built = build(checkpoint, RECIPE, folder)
    complete_bundle(replace(built.plan, name="bundle"))
    return built.folder


def _level_2(bundle: Path, fault: str) -> int:
    """The peak memory of the check in bytes."""
    folder = bundle.parent
    inputs = ["--lock", folder / "locks", "--source", folder / "checkpoint/source.json", "--prompt", "hello"]
    command = [sys.executable, "-c", fault + RUN, "check-generation", bundle, *inputs, "--output", folder / "out.json"]
    done = subprocess.run([*map(str, command), "--max_tokens", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.soak
@pytest.mark.parametrize(("fault", "fits"), [("", True), (FP32_COPIES, False), (WHOLE_MODEL, False)])
def test_level_2_of_a_deeper_model_takes_1_3_times_its_bytes(tmp_path: Path, fault: str, fits: bool) -> None:
    sizes, peaks = [], []
    for layers in (2, 12):
        folder = tmp_path / str(layers)
        folder.mkdir()
        bundle = _bundle(folder, layers)
        sizes.append(sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()))
        peaks.append(_level_2(bundle, fault))
    assert (peaks[1] - peaks[0] < 1.3 * (sizes[1] - sizes[0])) == fits
