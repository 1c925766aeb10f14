"""Measure check level 1 for every weight format and hidden state type: the table of docs/checks.md.

    python scripts/bench_thresholds.py --lock DIR --source FILE --calibration DIR [--prompt TEXT] [TAG ...]

--lock and --source are as for `axzoo check-layers`; --calibration is the output folder of `axzoo calibrate`. Layers are
quantized once and compiled for each hidden state type. Prints one row per combination.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from axzoo.backends.host.compiler import compile_layer
from axzoo.calibrate.rounding import gptq_weights
from axzoo.calibrate.states import find_states
from axzoo.check.layers import check_layers
from axzoo.check.oracles import in_memory
from axzoo.checkpoint import open_checkpoint
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.spec import LayerSpec
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.parts.kind import PartId
from axzoo.parts.part import Part, read_part, verified_blocks
from axzoo.runtime.bundle_folder import ModelFiles
from axzoo.tokenizer.local import load_tokenizer
from axzoo.weights.bf16 import write_embedding
from axzoo.weights.encoding import layer_format
from axzoo.weights.formats import is_calibrated
from axzoo.weights.recipe import HIDDEN_STATE_TYPES, Recipe
from axzoo.weights.stored import StoredWeight, store_weight

FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {"weight_type": "fp32"},
    "fp16": {"weight_type": "fp16"},
    "bf16": {"weight_type": "bf16"},
    "s8": {},
    "s8-mse": {"scale_rule": "mse"},
    "s8-g32": {"weight_group_size": 32},
    "s4": {"weight_type": "s4"},
    "s4-mse": {"weight_type": "s4", "scale_rule": "mse"},
    "s4-gptq": {"weight_type": "s4", "rounding": "gptq"},
    "s4-mse-gptq": {"weight_type": "s4", "scale_rule": "mse", "rounding": "gptq"},
    "s4-g64": {"weight_type": "s4", "weight_group_size": 64},
    "s4-g64-mse": {"weight_type": "s4", "weight_group_size": 64, "scale_rule": "mse"},
    "s4-g64-gptq": {"weight_type": "s4", "weight_group_size": 64, "rounding": "gptq"},
    "s4-g32": {"weight_type": "s4", "weight_group_size": 32},
    "s4-g32-mse": {"weight_type": "s4", "weight_group_size": 32, "scale_rule": "mse"},
}
BASE = Recipe(prefill_len=128, kv_cache_len=255)


class LockedCheckpoint:
    """The parts of a locked checkpoint, as arrays and quantized."""

    def __init__(self, locks: Path, source: Path, calibration: Path) -> None:
        self._locks, self._calibration = locks, calibration
        self._checkpoint = open_checkpoint(checkpoint_folder(source))
        self.layers = len(list(locks.glob("layer_*.json")))

    def part(self, name: str) -> tuple[Part, dict[str, np.ndarray]]:
        part = read_part(self._locks / name)
        blocks = {role: verified_blocks(self._checkpoint, tensor) for role, tensor in part.tensors.items()}
        return part, {role: np.concatenate(list(given)).astype(np.float32) for role, given in blocks.items()}

    def stored(self, layer: int, recipe: Recipe, tensors: Mapping[str, np.ndarray]) -> dict[str, StoredWeight]:
        """The matrices of a layer, quantized by the recipe."""
        if is_calibrated(recipe):
            spec = LayerSpec.from_dict(dict(self.part(PartId("layer", layer).lock_file)[0].spec))
            states = find_states(self._calibration / f"layer_{layer}.safetensors").read(spec.hidden_size)
            return gptq_weights(spec, recipe, tensors, states)
        matrices = {role: values for role, values in tensors.items() if values.ndim == 2}
        form = layer_format(recipe)
        return {role: store_weight(role, [w], (w.shape[0], w.shape[1]), form) for role, w in matrices.items()}


def layer_files(locked: LockedCheckpoint, recipe: Recipe, folder: Path) -> dict[str, list[Path]]:
    """Compile all layers; return their files by hidden state type."""
    files: dict[str, list[Path]] = {state: [] for state in HIDDEN_STATE_TYPES}
    for layer in range(locked.layers):
        part, tensors = locked.part(PartId("layer", layer).lock_file)
        spec, stored = LayerSpec.from_dict(dict(part.spec)), locked.stored(layer, recipe, tensors)
        for state in HIDDEN_STATE_TYPES:
            one = replace(recipe, hidden_state_type=state)
            compiled = compile_layer(spec, one, part.shapes, lambda role, tensors=tensors: [tensors[role]], stored)
            files[state].append(folder / f"{state}_{layer}")
            with files[state][-1].open("wb") as file:
                file.writelines(compiled.pieces)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("tags", nargs="*", metavar="TAG", help=f"only these of {', '.join(FORMATS)}")
    args = parser.parse_args()
    locked = LockedCheckpoint(args.lock, args.source, args.calibration)
    tokenizer = load_tokenizer(checkpoint_folder(args.source))
    oracle = in_memory(checkpoint_oracle(args.lock, args.source, BASE.positions))
    ids = tokenizer.encode_chat([{"role": "user", "content": args.prompt}])
    embed, tensors = locked.part(PartId("embed").lock_file)
    (vocab_size, hidden_size), *_ = embed.shapes.values()
    print("| layers | -t | worst cosine | delta L2 |\n" + "|---" * 4 + "|", flush=True)
    for tag in args.tags or FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            embedding = Path(folder) / "embedding"
            with embedding.open("wb") as file:
                write_embedding(tensors.values(), file)
            recipe = replace(BASE, **FORMATS[tag])
            for state, paths in layer_files(locked, recipe, Path(folder)).items():
                files = ModelFiles(
                    layers=tuple(paths),
                    post=Path(),
                    embedding=embedding,
                    vocab_size=vocab_size,
                    hidden_size=hidden_size,
                )
                checks = list(check_layers(files, oracle, ids, replace(recipe, hidden_state_type=state)))
                parts = [part for check in checks for part in (check.decode, check.prefill) if part]
                worst, delta = min(part.cosine for part in parts), max(part.delta_l2 for part in parts)
                print(f"| {tag} | {state} | {worst:.6f} | {delta:.4f} |", flush=True)


if __name__ == "__main__":
    main()
