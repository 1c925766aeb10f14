"""Time and peak memory of every job for a model with Qwen2.5-7B's dimensions and random bf16 weights, stored as s8.

    python scripts/bench_large.py FOLDER [--layers N] [--max-tokens N] [--only JOB ...]

Prints a table with one row per job: seconds, CPU seconds, peak resident memory in MB (of 2**20 bytes), and that memory
in bytes per parameter and relative to the bundle. FOLDER keeps what is built, so --only repeats single jobs. Weights
of 4 layers take 4 GB, those of 12 layers 8 GB, and a bundle takes half as much again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from random_shards import RandomShards, layer_matrices

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 3584, 18944, 28, 4, 152064
KV_SIZE = HIDDEN // HEADS * KV_HEADS
RECIPE = {"prefill_len": 128, "kv_cache_len": 1023}
PROMPT = "What is the largest planet of the solar system?"
MATRICES = layer_matrices(HIDDEN, INTERMEDIATE, KV_SIZE)

HEAD_SPREAD = 6
"""Makes logits as far apart as those of trained models."""


def generate(folder: Path, layers: int, seed: int = 0) -> None:
    """Write the checkpoint: one shard per layer, one for the embedding, one for norm and lm_head."""
    shards = RandomShards(folder, layers + 2, seed)
    for index in range(layers):
        prefix = f"model.layers.{index}"
        tensors = {f"{prefix}.{name}.weight": shards.matrix(*shape) for name, shape in MATRICES.items()}
        tensors |= {f"{prefix}.self_attn.{name}_proj.bias": shards.vector(KV_SIZE, 0) for name in "kv"}
        tensors |= {f"{prefix}.self_attn.q_proj.bias": shards.vector(HIDDEN, 0)}
        norms = ("input_layernorm", "post_attention_layernorm")
        shards.save(tensors | {f"{prefix}.{name}.weight": shards.vector(HIDDEN, 1) for name in norms})
    shards.save({"model.embed_tokens.weight": shards.matrix(VOCABULARY, HIDDEN, 1)})
    head = shards.matrix(VOCABULARY, HIDDEN, HEAD_SPREAD * HIDDEN**-0.5)
    shards.save({"lm_head.weight": head, "model.norm.weight": shards.vector(HIDDEN, 1)})
    shards.finish()
    write_json(
        folder / "config.json",
        {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "max_position_embeddings": 32768,
            "num_attention_heads": HEADS,
            "num_hidden_layers": layers,
            "num_key_value_heads": KV_HEADS,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": VOCABULARY,
        },
    )


def write_tokenizer(folder: Path, vocabulary: int = VOCABULARY, starts_with_bos: bool = False) -> None:
    """Write a tokenizer with one token per byte, <bos> (256), <eos> (257) and a name for every other id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = ["<bos>", "<eos>"]
    words = [*alphabet, *ends, *(f"<{number}>" for number in range(len(alphabet) + len(ends), vocabulary))]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(ends)
    if starts_with_bos:
        start = [("<bos>", len(alphabet))]
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=start)
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": "<bos>", "eos_token": "<eos>"})
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")


def write_checkpoint(folder: Path, layers: int, seed: int = 0) -> None:
    """Write the folder `checkpoint`, complete or not at all."""
    partial = folder / "checkpoint.partial"
    partial.mkdir(parents=True)
    generate(partial, layers, seed)
    write_tokenizer(partial)
    partial.rename(folder / "checkpoint")


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data))


@dataclass(frozen=True)
class Job:
    """A command, and the resources that it took: seconds, CPU seconds, peak resident memory in bytes."""

    name: str
    wall: float
    cpu: float
    peak: int


def measure(name: str, log: Path, *command: object) -> Job:
    """Run a command in a process of its own; its output goes to `log`."""
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed:\n{log.read_text()}")
    return Job(name, time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def commands(folder: Path, layers: int, max_tokens: int) -> Iterator[tuple[str, list[object]]]:
    """The jobs in the order of a build, as arguments of axzoo."""
    source, locks, bundle = folder / "fetched/source.json", folder / "locks", folder / "AX650/large-w8a16"
    common = ["--chip", "AX650", "--recipe", json.dumps(RECIPE)]
    names = {f"layer_{index}": f"qwen2_p{RECIPE['prefill_len']}_l{index}_together.axmodel" for index in range(layers)}
    names |= {"post": "qwen2_post.axmodel", "embed": "model.embed_tokens.weight.bfloat16.bin"}

    def compile_parts(*parts: str) -> list[object]:
        return [
            *("compile", "--source", source, "--store", folder / "store", *common),
            *("--lock", *(locks / f"{part}.json" for part in parts)),
            *("--output", *(bundle / names[part] for part in parts)),
            *("--receipt", *(folder / f"receipts/{part}.json" for part in parts)),
        ]

    yield "fetch", ["fetch", "--path", folder / "checkpoint", "--output", folder / "fetched"]
    model = ["--model_type", "qwen2", "--num_hidden_layers", layers]
    yield "lock", ["lock", "--source", source, *model, "--threads", os.cpu_count(), "--output", locks]
    yield "layer", compile_parts("layer_0")
    yield "all other layers", compile_parts(*[f"layer_{index}" for index in range(1, layers)])
    yield "post", compile_parts("post")
    yield "embed", compile_parts("embed")
    receipts = [folder / f"receipts/{part}.json" for part in names]
    whole = ["bundle", bundle, "--model", "large", "--lock", locks, "--source", source, *common]
    yield "bundle", [*whole, "--receipts", *receipts]
    check = [bundle, "--lock", locks, "--source", source, "--prompt", PROMPT]
    yield "check level 1", ["check-layers", *check, "--output", folder / "layers.json"]
    tokens = ["--max_tokens", max_tokens]
    yield "check level 2", ["check-generation", *check, *tokens, "--output", folder / "generation.json"]
    yield "run", ["run", bundle, "--prompt", PROMPT, "--greedy", "--max-tokens", max_tokens]
    text = Path(__file__).parent.parent / "docs/architecture.md"
    calibration = ["--text", text, "--tokens", 2048, "--output", folder / "calibration"]
    yield "calibrate, 2,048 tokens of a text", ["calibrate", "--lock", locks, "--source", source, *calibration]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for checkpoint, bundle and reports")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="number of layers (4)")
    parser.add_argument("--max-tokens", type=int, default=16, metavar="N", help="tokens of the answer (16)")
    parser.add_argument("--only", nargs="+", default=[], metavar="JOB", help="only these jobs")
    parser.add_argument("--generate", action="store_true", help="only write the checkpoint")
    args = parser.parse_args()
    if args.generate:  # in a process of its own, because a child's peak memory starts at that of its parent
        write_checkpoint(args.folder, args.layers)
        return
    checkpoint = args.folder / "checkpoint"
    if not checkpoint.exists():
        subprocess.run([sys.executable, __file__, args.folder, "--layers", str(args.layers), "--generate"], check=True)
    parameters = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 2
    print("| job | wall, s | CPU, s | peak, MB | bytes per parameter | of the bundle |\n|---|---|---|---|---|---|")
    for name, command in commands(args.folder, args.layers, args.max_tokens):
        if args.only and name not in args.only:
            continue
        job = measure(name, args.folder / f"{name}.log", "axzoo", *command)
        bundle = sum(path.stat().st_size for path in (args.folder / "AX650").rglob("*") if path.is_file())
        share = f"{job.peak / bundle:.2f}" if bundle else ""
        sizes = f"{job.peak >> 20} | {job.peak / parameters:.2f} | {share}"
        print(f"| {name} | {job.wall:.1f} | {job.cpu:.1f} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
