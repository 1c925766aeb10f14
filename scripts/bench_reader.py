"""Measure how long it takes to prove the weights in files of the vendor's compiler: docs/vendor.md.

    python scripts/bench_reader.py CHECKPOINT FOLDER [--type s4]

The files are written to FOLDER by the independent writer of the tests: a layer, its table filled with the weights of
every other layer, and a post layer. That the filled table of layer 1 is the writer's own is checked.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests/backends"))

from table_writer import Matrix, Shape, container, layer_table, post_table

from axzoo.backends.pulsar2.vendor_folder import FolderWeights
from axzoo.backends.pulsar2.weight_table import filled, read_table

KV, PREFILL = 255, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder with config.json and weights")
    parser.add_argument("folder", type=Path, help="for the files")
    parser.add_argument("--type", choices=["s8", "s4"], default="s8", help="of the weights (default: s8)")
    args = parser.parse_args()
    write(FolderWeights(args.checkpoint), args.folder, args.type)
    verify(args.folder, args.checkpoint)


def write(model: FolderWeights, folder: Path, kind: str) -> None:
    spec = model.spec.layer
    rows = 64 if kind == "s4" and spec.head_dim == 64 else 32
    sizes = spec.hidden_size, spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim, spec.intermediate_size
    shape = Shape(*sizes, kind, "A", rows, spec.qk_norm, KV, PREFILL)
    table = bytes(layer_table(shape, tensors(model, 0)).content)
    start = time.process_time()
    reading = read_table(memoryview(table), model.shapes(0), model.reader(0))
    print(f"{kind}: table of {len(table)} bytes, read in {time.process_time() - start:.2f} s of CPU time")
    assert reading.all_faults == [], reading.all_faults
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(model.num_layers):
        content = filled(memoryview(table), reading, model.reader(index))
        assert index != 1 or content == bytes(layer_table(shape, tensors(model, 1)).content)
        name = f"{model.spec.model_type}_p{PREFILL}_l{index}_together.axmodel"
        (folder / name).write_bytes(container(content, spec.hidden_size, spec.kv_size, KV, PREFILL))
    post = tensors(model, None)
    head = post_table(post["norm.weight"], post["lm_head.weight"])
    (folder / f"{model.spec.model_type}_post.axmodel").write_bytes(container(bytes(head.content)))


def tensors(model: FolderWeights, layer: int | None) -> dict[str, Matrix]:
    read = model.reader(layer)
    return {
        role: np.concatenate([np.asarray(block, np.float32) for block in read(role)]) for role in model.shapes(layer)
    }


PROGRAM = """
import resource, sys
from axzoo.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"verify: {used.ru_utime + used.ru_stime:.1f} s of CPU time, {peak / 1e3:.0f} MB", file=sys.stderr)
sys.exit(code)
"""


def verify(folder: Path, checkpoint: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "verify", "--weights", str(checkpoint), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
