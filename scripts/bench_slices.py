"""Measures what backend pulsar2 adds to the compiler: the time of a job without the compiler's own, and the memory of
slicing. The compiler is the simulator of the tests. The weights are random, with the dimensions of SmolLM2-135M and of
a 7B model.

python scripts/bench_slices.py [FOLDER]   needs 3 GB of disk
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from axzoo.checkpoint.writing import StreamedTensor, write_streamed
from axzoo.model.families import load_family
from axzoo.model.reading import spec_of
from axzoo.parts.lock import make_lock, write_lock

SIMULATOR = Path(__file__).parents[1] / "tests/pulsar2_simulator/simulator.py"
COMMON = {"model_type": "llama", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "SmolLM2-135M": (
        COMMON | {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
                  "vocab_size": 49152, "num_hidden_layers": 8},
        ["layer_0", "layer_0 layer_1 layer_2 layer_3 layer_4 layer_5 layer_6 layer_7", "post"],
    ),
    "7B": (
        COMMON | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
                  "vocab_size": 32000, "num_hidden_layers": 1},
        ["layer_0", "post"],
    ),
}  # fmt: skip
RECIPE = '{"prefill_len": 128, "kv_cache_len": 1023}'
WRAPPER = """#!/bin/sh
case "$*" in *--input_path*) ;; *) exec {python} {simulator} "$@";; esac
began=$(date +%s.%N)
{python} {simulator} "$@"
echo "$began $(date +%s.%N)" > {times}
"""
MEASURED = (
    "import resource, sys; from axzoo.cli import main; status = main(sys.argv[1:]); "
    "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, used.ru_maxrss); "
    "sys.exit(status)"
)


def write_model(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "source.json").write_text(json.dumps({"source": {"path": "random"}, "root": ".", "files": {}}))
    spec, family = spec_of(config, folder / "config.json", ()), load_family("llama")
    refs = {ref.name: ref for ref in (*family.post_tensors(spec).values(), family.embed_tensor(spec))}
    for layer in range(spec.num_hidden_layers):
        refs |= {ref.name: ref for ref in family.layer_tensors(spec, layer).values()}
    generator = np.random.default_rng(0)

    def rows(shape: tuple[int, ...]) -> Iterator[Any]:
        for _ in range(shape[0]):
            yield generator.standard_normal((1, *shape[1:]), np.float32).astype(ml_dtypes.bfloat16)

    write_streamed(
        folder / "model.safetensors",
        [StreamedTensor(r.name, "BF16", r.shape, partial(rows, r.shape)) for r in refs.values()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(Path(folder))


def measure(root: Path) -> None:
    """Prints a table."""
    times, wrapper = root / "times", root / "compiler"
    wrapper.write_text(WRAPPER.format(python=sys.executable, simulator=SIMULATOR, times=times))
    wrapper.chmod(0o755)
    compiler = json.dumps({"command": [str(wrapper), "llm_build"], "version": "7.0 (0123abcd)", "memory_mb": 12000})
    print("| model | parts | job | compiler | added | CPU of axzoo | peak of axzoo |\n|---|---|---|---|---|---|---|")
    for name, (config, jobs) in MODELS.items():
        folder = root / name
        write_model(folder, config)
        write_lock(
            make_lock(folder, "llama", config["num_hidden_layers"], threads=2), root / f"{name}-locks", folder, {}
        )
        for job in jobs:
            parts = job.split()
            words = ["compile", "--source", str(folder), "--store", str(root / f"{name}-{len(parts)}-{parts[0]}")]
            words += ["--chip", "AX650", "--backend", "pulsar2", "--compiler", compiler, "--recipe", RECIPE]
            for option, suffix in (("--lock", "json"), ("--output", "out"), ("--receipt", "receipt")):
                place = root / f"{name}-locks" if option == "--lock" else root / "out"
                words += [option, *(str(place / f"{part}.{suffix}") for part in parts)]
            began = time.time()
            done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=False)
            took = time.time() - began
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            start, end = map(float, times.read_text().split())
            cpu, peak = map(float, done.stdout.split()[-2:])
            label = parts[0] if len(parts) == 1 else f"{len(parts)} layers"
            times_s = f"{took:.1f} s | {end - start:.1f} s | {took - end + start:.2f} s | {cpu:.2f} s"
            print(f"| {name} | {label} | {times_s} | {peak / 1000:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
