"""Compile a decoder layer and the post layer of every config.json in a folder, from generated bf16 weights to s8.

    python scripts/bench_dimensions.py FOLDER [NAME ...]

Prints a table of time and peak memory per job. The host backend writes the same bytes for both chips, so each row
applies to both. The weights of each model are generated in a separate process and removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("layer_0", "post")
RECIPE = json.dumps({"prefill_len": 128, "kv_cache_len": 1023})


def generate(config_path: Path, folder: Path) -> None:
    """Write the tensors of layer 0 and of the post layer, with their lock files."""
    from dataclasses import asdict

    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from axzoo.checkpoint import open_checkpoint
    from axzoo.core.files import read_json, write_json
    from axzoo.model.config_view import ConfigView
    from axzoo.model.families import load_family
    from axzoo.model.spec import TensorRef
    from axzoo.parts.kind import PartId
    from axzoo.parts.kinds import kind_of
    from axzoo.parts.lock import digest_rows
    from axzoo.parts.part import Part

    config = read_json(config_path)
    view = ConfigView(config, config_path)
    family = load_family(config["model_type"])
    spec = family.decoder_spec(view)
    view.finish()
    random = np.random.default_rng(0)

    def values(ref: TensorRef) -> np.ndarray:
        rows = [random.standard_normal(ref.shape[1:], np.float32) for _ in range(min(256, ref.shape[0]))]
        tile = (np.stack(rows) / 50).astype(ml_dtypes.bfloat16)
        return np.resize(tile, ref.shape)

    parts = (PartId("layer", 0), PartId("post"))
    tensors = {part: kind_of(part.kind).tensors(family, spec, part.index) for part in parts}
    refs = {ref.name: ref for roles in tensors.values() for ref in roles.values()}
    save_file({name: values(ref) for name, ref in refs.items()}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    for part, roles in tensors.items():
        locked = {role: digest_rows(folder, checkpoint, ref) for role, ref in roles.items()}
        part_spec = asdict(kind_of(part.kind).spec(spec, part.index))
        write_json(folder / part.lock_file, Part(part, part_spec, locked).to_dict())
    write_json(folder / "config.json", config)
    write_json(folder / "source.json", {"source": {}, "root": ".", "files": {}})
    write_json(folder / "about.json", {"hidden_size": spec.layer.hidden_size, "vocab_size": spec.vocab_size})


def measure(part: str, folder: Path) -> tuple[float, int]:
    """Wall seconds and peak memory in MB (of 2**20 bytes) of one compile job."""
    lock = ("--lock", folder / f"{part}.json", "--source", folder / "source.json")
    paths = ("--store", folder / "store", "--output", folder / "out", "--receipt", folder / "receipt.json")
    command = ["axzoo", "compile", *lock, *paths, "--chip", "AX650", "--recipe", RECIPE]
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{folder}: {message}")
    return time.perf_counter() - start, usage.ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with config.json files, called NAME.json")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these models")
    parser.add_argument("--generate", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    paths = [args.folder / f"{name}.json" for name in args.names] or sorted(args.folder.glob("*.json"))
    if args.generate is not None:
        generate(paths[0], args.generate)
        return
    print("| model | hidden | vocabulary | layer, s | layer, MB | post, s | post, MB |\n|---|---|---|---|---|---|---|")
    for path in paths:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            subprocess.run([sys.executable, __file__, str(args.folder), path.stem, "--generate", name], check=True)
            about = json.loads((folder / "about.json").read_text())
            layer, post = (measure(part, folder) for part in PARTS)
        sizes = f"{about['hidden_size']} | {about['vocab_size']}"
        print(f"| {path.stem} | {sizes} | {layer[0]:.1f} | {layer[1]} | {post[0]:.1f} | {post[1]} |", flush=True)


if __name__ == "__main__":
    main()
