"""The scripts for the embedding, run with the commands in the vendor's documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from axzoo.parts.embedding_files import BFLOAT16, FLOAT32, NPY
from tiny_model import Built, Checkpoint

SCRIPTS = Path(__file__).parents[1] / "scripts"
NAME = "model.embed_tokens.weight"


def _run(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """With the axzoo of this interpreter's environment on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([SCRIPTS / script, *words], capture_output=True, text=True, env={**os.environ, "PATH": path})


@pytest.mark.parametrize("script", ["embed_process.sh", "embed_process_vl.sh"])
def test_documented_command(script: str, checkpoint: Checkpoint, s8: Built, tmp_path: Path) -> None:
    """The output folder is a bundle, whose own embedding is rounded in the same way."""
    bundle = s8.moved(tmp_path / "bundle").folder
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    done = _run(script, checkpoint.folder, bundle)
    assert (done.returncode, done.stdout) == (0, "")
    assert [line.split(" - ")[1].split(" (")[0] for line in done.stderr.splitlines()] == [
        f"wrote {bundle / name}" for name in (NPY, FLOAT32, BFLOAT16)
    ]
    table = load_file(checkpoint.folder / "model.safetensors")[NAME]
    assert np.array_equal(np.load(bundle / NPY), table)
    after = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert after == before | {NPY: after[NPY], FLOAT32: table.tobytes()}


def test_fp32_to_bf16_matches_the_vendors_tool(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    source, target = tmp_path / FLOAT32, tmp_path / BFLOAT16
    source.write_bytes(values.tobytes())
    assert _run("fp32_to_bf16", source, target).returncode == 0
    assert target.read_bytes() == values.astype(ml_dtypes.bfloat16).tobytes()
    assert _run("fp32_to_bf16", source, target, "--truncate").returncode == 0
    assert target.read_bytes() == values.view(np.uint16)[1::2].tobytes()


@pytest.mark.parametrize("words", [(), ("one",), ("one", "two", "three")])
@pytest.mark.parametrize("script", ["embed_process.sh", "embed_process_vl.sh", "fp32_to_bf16"])
def test_missing_or_additional_arguments(script: str, words: tuple[str, ...]) -> None:
    done = _run(script, *words)
    assert done.returncode == 2
    assert "IN OUT" in done.stderr


@pytest.mark.parametrize("script", ["embed_process.sh", "fp32_to_bf16"])
def test_missing_input_prints_one_line(script: str, tmp_path: Path) -> None:
    done = _run(script, tmp_path / "none", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{tmp_path}/none" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "rows, columns, bound",
    [(48_000, 1024, 250), pytest.param(152_064, 3584, 500, marks=pytest.mark.soak)],
)
def test_memory_does_not_grow_with_the_table(rows: int, columns: int, bound: int, tmp_path: Path) -> None:
    """Mapped pages count as memory. Even the smaller table, of 197 MB, would exceed the bound if they stayed mapped."""
    config = {
        "model_type": "llama", "hidden_size": columns, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 8, "vocab_size": rows, "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = rows * columns * 4
    entry = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, size]}
    header = json.dumps({NAME: entry}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    program = (
        "import sys; from axzoo.cli import main; code = main(sys.argv[1:]); "
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "embed-process", tmp_path, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "out" / BFLOAT16).stat().st_size == size // 2
    assert int(done.stdout) / 1000 < bound
