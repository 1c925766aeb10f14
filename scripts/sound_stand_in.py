"""Check sound builds of a random model with the dimensions of Qwen2.5-0.5B, in five recipes.

    python scripts/sound_stand_in.py FOLDER

Writes the model, builds it with Snakemake and runs sound_builds.py on the bundles. Like a trained model, it has massive
activations, which `plant` describes. FOLDER keeps what is built, so the same command continues. It takes 8 GB of disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_large
import numpy as np
from bench_large_zoo import ROOT, link_workflow
from numpy.typing import NDArray
from random_shards import RandomShards, layer_matrices

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS, VOCABULARY = 896, 4864, 14, 2, 24, 151936
HEAD_DIM = HIDDEN // HEADS
KV_SIZE = HEAD_DIM * KV_HEADS

MATRICES = layer_matrices(HIDDEN, INTERMEDIATE, KV_SIZE)
NORMS = ("input_layernorm", "post_attention_layernorm")
SIZES = {
    "layer": sum(rows * columns for rows, columns in MATRICES.values()),
    "post": VOCABULARY * HIDDEN,
    "kv_width": KV_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
}

BOS = 256
"""The first token of every prompt; its id follows those of the 256 bytes."""

EARLY_LAYER = 2
"""The layer that makes the first token's activations massive."""

MASSIVE_CHANNELS = (4, 447, 700)
"""Channels of the residual stream in which they are."""

LOUD_CHANNELS = (11, 130, 258, 391, 520, 611, 777, 850)
"""Channels with large norm weights."""

TEXT = "calibration.txt"
RECIPES = {
    "s8": ("w8a16", "weight_type: s8"),
    "gptq": (
        "w8a16-gptq",
        f"weight_type: s8, rounding: gptq, calibration_tokens: 2048, calibration_text: {TEXT}",
    ),
    "s4": ("w4a16-g32", "weight_type: s4, weight_group_size: 32"),
    "bf16": ("w16a16", "weight_type: bf16, post_weight_type: bf16"),
    "fp32": ("w32a16", "weight_type: fp32, post_weight_type: fp32"),
}
"""For every build its tag and its options in the matrix."""


def plant(tensors: dict[str, NDArray[Any]], layer: int, first: NDArray[Any]) -> None:
    """Changes the random `tensors` of a layer so that activations are as uneven as those of trained models.

    - In one early layer, neuron 0 responds to the embedding of the first token, `first` [hidden_size], and writes to
      three channels with weights of 18 and 24, where those of other neurons have a standard deviation of 0.014. From
      there on, the residual stream of this token has values of 3,000 in these channels, and that of others up to 250.
    - The norms multiply eight channels by 10, and these three by 0.1.
    - In every head, keys have four channels with biases of 80 to 160, and queries have biases of 4 there.
    """
    if layer == EARLY_LAYER:
        direction = first / np.linalg.norm(first.astype(np.float32))
        tensors["mlp.gate_proj.weight"][0] = tensors["mlp.up_proj.weight"][0] = direction
        tensors["mlp.down_proj.weight"][list(MASSIVE_CHANNELS), 0] = (24, -24, 18)
    for name in NORMS:
        tensors[f"{name}.weight"][list(LOUD_CHANNELS)] *= 10
        tensors[f"{name}.weight"][list(MASSIVE_CHANNELS)] *= 0.1
    channels = [3, 17, 30, 31]  # the last ones have the slowest rotations
    keys, queries = (tensors[f"self_attn.{name}_proj.bias"].reshape(-1, HEAD_DIM) for name in "kq")
    keys[:, channels] = (80, -100, 160, -120)
    queries[:, channels] = (4, -4, 4, -4)


def write_checkpoint(folder: Path) -> None:
    """Write the folder `checkpoint`, complete or not at all."""
    partial = folder / "checkpoint.partial"
    partial.mkdir(parents=True)
    shards = RandomShards(partial, LAYERS + 1)
    embedding = shards.matrix(VOCABULARY, HIDDEN, 1)
    shards.save({"model.embed_tokens.weight": embedding, "model.norm.weight": shards.vector(HIDDEN, 1)})
    for index in range(LAYERS):
        tensors = {f"{name}.weight": shards.matrix(*shape) for name, shape in MATRICES.items()}
        sizes = {"q": HIDDEN, "k": KV_SIZE, "v": KV_SIZE}
        tensors |= {f"self_attn.{name}_proj.bias": shards.vector(size, 0) for name, size in sizes.items()}
        tensors |= {f"{name}.weight": shards.vector(HIDDEN, 1) for name in NORMS}
        plant(tensors, index, embedding[BOS])
        shards.save({f"model.layers.{index}.{name}": tensor for name, tensor in tensors.items()})
    shards.finish()
    bench_large.write_json(
        partial / "config.json",
        {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "max_position_embeddings": 32768,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV_HEADS,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": VOCABULARY,
        },
    )
    bench_large.write_tokenizer(partial, VOCABULARY, starts_with_bos=True)
    partial.rename(folder / "checkpoint")


def write_project(folder: Path) -> None:
    """Write the matrix and the calibration text, and link the workflow."""
    link_workflow(folder)
    (folder / TEXT).write_text((ROOT / "docs/architecture.md").read_text())
    sizes = ", ".join(f"{key}: {size}" for key, size in SIZES.items())
    common = f"path: {folder / 'checkpoint'}, model_type: qwen2, num_hidden_layers: {LAYERS}, sizes: {{{sizes}}}"
    entries = [f"  random-{name}: {{{common}, {options}}}\n" for name, (_, options) in RECIPES.items()]
    lengths = "prefill_len: 128, kv_cache_len: 1023, last_kv_cache_len: [128, 256, 384, 512, 640, 768]"
    defaults = f"defaults: {{chips: [AX650], {lengths}}}\n"
    (folder / "config/zoo.yaml").write_text(defaults + "models:\n" + "".join(entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    if not (folder / "checkpoint").exists():
        write_checkpoint(folder)
    write_project(folder)
    bundles = [f"results/AX650/random-{name}-{tag}" for name, (tag, _) in RECIPES.items()]
    manifests = [f"{bundle}/manifest.json" for bundle in bundles]
    subprocess.run(["snakemake", "--cores", "all", *manifests], cwd=folder, check=True)
    check = [sys.executable, Path(__file__).with_name("sound_builds.py"), *(folder / bundle for bundle in bundles)]
    sys.exit(subprocess.run(check, check=False).returncode)


if __name__ == "__main__":
    main()
