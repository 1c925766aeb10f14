"""Compiles one decoder layer and the post layer of every config.json in a folder, from generated bf16 weights, s8.

    python scripts/bench_dimensions.py FOLDER [FILE ...]

Prints a table of time and peak memory per job. The embedded backend writes the same bytes for both chips, so one row
stands for both. A model's weights are generated in a process of its own, and its files removed again.
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

RECIPE = ("--prefill_len", "128", "--kv_cache_len", "1023")


def generate(config_path: Path, folder: Path) -> None:
    """Writes the tensors of layer 0 and of the post layer with their lock files."""
    from dataclasses import asdict

    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from axzoo.checkpoint.safetensors import SafetensorsCheckpoint
    from axzoo.core.files import read_json, write_json
    from axzoo.model.config_view import ConfigView
    from axzoo.model.families import load_family
    from axzoo.model.spec import TensorRef
    from axzoo.parts.lock import digest_rows

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

    parts = {
        "layer_0": (asdict(spec.layer_spec(0)), family.layer_tensors(spec, 0)),
        "post": (asdict(spec.post), family.post_tensors(spec)),
    }
    refs = {ref.name: ref for _, tensors in parts.values() for ref in tensors.values()}
    save_file({name: values(ref) for name, ref in refs.items()}, folder / "model.safetensors")
    checkpoint = SafetensorsCheckpoint(folder)
    for name, (part_spec, tensors) in parts.items():
        locked = {role: asdict(digest_rows(folder, checkpoint, ref)) for role, ref in tensors.items()}
        write_json(folder / f"{name}.json", {"spec": part_spec, "tensors": locked})
    write_json(folder / "config.json", config)
    write_json(folder / "source.json", {"source": {}, "root": ".", "files": {}})
    write_json(folder / "about.json", {"hidden_size": spec.layer.hidden_size, "vocab_size": spec.vocab_size})


def measure(verb: str, part: str, folder: Path, *recipe: str) -> tuple[float, int]:
    """Wall seconds and peak MB of one compile job."""
    paths = ("--store", folder / "store", "--output", folder / "out", "--receipt", folder / "receipt.json")
    command = ["axzoo", verb, "--lock", folder / f"{part}.json", "--source", folder / "source.json", *paths, *recipe]
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
    parser.add_argument("folder", type=Path, help="holds NAME.json files")
    parser.add_argument("files", nargs="*", help="only these names")
    parser.add_argument("--generate", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    paths = [args.folder / f"{name}.json" for name in args.files] or sorted(args.folder.glob("*.json"))
    if args.generate is not None:
        generate(paths[0], args.generate)
        return
    print("| model | hidden | vocabulary | layer, s | layer, MB | post, s | post, MB |\n|---|---|---|---|---|---|---|")
    for path in paths:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            subprocess.run([sys.executable, __file__, str(args.folder), path.stem, "--generate", name], check=True)
            about = json.loads((folder / "about.json").read_text())
            layer = measure("layer", "layer_0", folder, *RECIPE)
            post = measure("post", "post", folder)
        sizes = f"{about['hidden_size']} | {about['vocab_size']}"
        print(f"| {path.stem} | {sizes} | {layer[0]:.1f} | {layer[1]} | {post[0]:.1f} | {post[1]} |", flush=True)


if __name__ == "__main__":
    main()
