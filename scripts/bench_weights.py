"""Measure the cost of every weight format for the demo's model: the table of docs/weights.md. Run `make demo` first.

    python scripts/bench_weights.py TEXT [TAG ...]

Builds the model with `axzoo llm_build` in results/bench/weights, with a KV cache of 2,047 tokens, and compares its
predictions after each of the first 2,000 tokens of TEXT with the fp32 checkpoint. Cosine and delta are from check
level 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from axzoo.check.fidelity import text_fidelity
from axzoo.core.files import read_json
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.runtime.model import load_model
from axzoo.tokenizer.local import load_tokenizer

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "results/checkpoints/SmolLM2-135M-Instruct-Q4_1"
WORK = ROOT / "results/bench/weights"
TOKENS = 2000
LENGTHS = ["--prefill_len", "128", "--kv_cache_len", "2047", "--last_kv_cache_len", *map(str, range(128, 2048, 128))]
OPTIONS = {
    "w32": "-w fp32",
    "w16f": "-w fp16",
    "w16": "-w bf16",
    "w8": "-w s8",
    "w8-mse": "-w s8 --scale_rule mse",
    "w8-gptq": "-w s8 --rounding gptq",
    "w8-g32": "-w s8 --weight_group_size 32",
    "w4": "-w s4",
    "w4-mse": "-w s4 --scale_rule mse",
    "w4-gptq": "-w s4 --rounding gptq",
    "w4-mse-gptq": "-w s4 --scale_rule mse --rounding gptq",
    "w4-g64": "-w s4 --weight_group_size 64",
    "w4-g64-mse-gptq": "-w s4 --weight_group_size 64 --scale_rule mse --rounding gptq",
    "w4-g32": "-w s4 --weight_group_size 32",
    "w4-g32-mse-gptq": "-w s4 --weight_group_size 32 --scale_rule mse --rounding gptq",
}


def build(tag: str) -> Path:
    """Build and check one format; return its bundle. A failed check is reported but does not stop the script."""
    output = WORK / tag
    command = [
        *("axzoo", "llm_build", "--input_path", CHECKPOINT, "--output_path", output, "--work_path", WORK / "work"),
        *("--parallel", "2", "--check_level", "1", "--prompt", "What is the capital of France?"),
        *LENGTHS,
        *OPTIONS[tag].split(),
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        print(f"{tag}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    return output


def worst_layer(bundle: Path) -> tuple[float, float]:
    """The lowest cosine and the largest relative L2 of the delta over all layers."""
    layers = read_json(bundle / "checks/layers.json")["layers"]
    numbers = [layer[kind] for layer in layers for kind in ("decode", "prefill")]
    return min(number["cosine"] for number in numbers), max(number["delta_l2"] for number in numbers)


def megabytes(files: Iterable[Path]) -> float:
    return sum(path.stat().st_size for path in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("tags", nargs="*", metavar="TAG", help=f"only these of {', '.join(OPTIONS)}")
    args = parser.parse_args()
    ids = load_tokenizer(CHECKPOINT).encode(args.text.read_text())[:TOKENS]
    locks = WORK / "work/results/locks" / CHECKPOINT.name
    print("| options | layers, MB | worst cosine | delta L2 | KL, nats | top-1 | perplexity |\n" + "|---" * 7 + "|")
    want = None
    for tag in args.tags or OPTIONS:
        bundle = build(tag)
        if want is None:
            want = checkpoint_oracle(locks, CHECKPOINT / "source.json", len(ids)).logits(ids).numpy()
        found = text_fidelity(load_model(bundle), want, ids)
        cosine, delta = worst_layer(bundle)
        print(
            f"| `{OPTIONS[tag]}` | {megabytes(bundle.glob('*_l*.axmodel')):.1f} | {cosine:.5f} | {delta:.4f} | "
            f"{found.mean_kl:.5f} | {found.top1_agreement:.4f} | {found.built_perplexity:.3f} |",
            flush=True,
        )
    print(f"\n{len(ids)} tokens; the fp32 checkpoint's own perplexity: {found.oracle_perplexity:.3f}")


if __name__ == "__main__":
    main()
