"""Measure Snakemake on a large matrix: 40 models with 30 tiny layers each, built and checked for both chips.

    python scripts/bench_zoo.py [--models N] [--layers-per-job N]

Prints a table with the time to plan everything, to build it, to plan and run with nothing to do, and the same after one
layer of one model has changed. A workflow with as many trivial jobs shows the minimum that Snakemake needs. The models
differ in a single tensor, so most parts come from the store: the benchmark measures scheduling, not compilation. The
peak memory is that of the largest process, which is Snakemake for a plan and a check for a build.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench import CHECKPOINT, PARTS, ROOT, Run, run, table

LAYERS, ROUNDS = 30, 3
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}

WRITE = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

folder, tokenizer, models, sizes = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
torch.manual_seed(0)
spread = sizes["hidden_size"] ** -0.5
config = LlamaConfig(**sizes, vocab_size=len(tokenizer), initializer_range=spread, tie_word_embeddings=True)
model = LlamaForCausalLM(config).to(torch.bfloat16)
for index in range(models):
    tokenizer.save_pretrained(f"{folder}/{index}")
    model.model.norm.weight.data[0] = 1 + index / 128
    model.save_pretrained(f"{folder}/{index}")
"""
CHANGE = """
import sys
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
tensors["model.layers.1.mlp.up_proj.weight"].mul_(1.5)
save_file(tensors, sys.argv[1], metadata={"format": "pt"})
"""
FLOOR = """
rule all:
    input: expand("out/{{i}}", i=range({jobs}))
rule job:
    output: "out/{{i}}"
    shell: ": > {{output}}"
"""


def write_zoo(folder: Path, models: int) -> None:
    """Write a project whose matrix contains `models` models, each with its own checkpoint, for both chips."""
    for part in PARTS:
        (folder / part).symlink_to(ROOT / part)
    sizes = json.dumps({**SIZES, "num_hidden_layers": LAYERS})
    run(sys.executable, "-c", WRITE, folder / "checkpoints", CHECKPOINT, str(models), sizes)
    entry = {"model_type": "llama", "num_hidden_layers": LAYERS}
    lengths = {"prefill_len": 16, "kv_cache_len": 63, "last_kv_cache_len": [16, 32], "chips": ["AX650", "AX620E"]}
    zoo = {f"model-{index}": entry | {"path": f"checkpoints/{index}"} for index in range(models)}
    (folder / "zoo.yaml").write_text(json.dumps({"defaults": lengths, "models": zoo}))  # JSON is YAML


def median_run(*command: str, cwd: Path) -> Run:
    """The run with the median wall time."""
    runs = sorted((run(*command, cwd=cwd) for _ in range(ROUNDS)), key=lambda one: one.wall)
    assert median(one.wall for one in runs) == runs[ROUNDS // 2].wall
    return runs[ROUNDS // 2]


def row(name: str, jobs: int, ours: Run, floor: Run | None) -> tuple[object, ...]:
    ratio: object = "" if floor is None else ours.wall / floor.wall
    return name, jobs, ours.wall, "" if floor is None else floor.wall, ratio, round(ours.peak_mb)


def count_jobs(project: Path) -> int:
    """The number of finished jobs, from Snakemake's log."""
    log = max((project / ".snakemake/log").iterdir(), key=os.path.getmtime).read_text()
    return len(set(re.findall(r"^Finished jobid: (\d+)", log, re.MULTILINE)))


def bench(folder: Path, models: int, settings: list[str]) -> None:
    zoo, trivial = folder / "zoo", folder / "floor"
    zoo.mkdir()
    trivial.mkdir()
    write_zoo(zoo, models)
    plain = ("snakemake", "--cores", str(os.cpu_count() or 1))
    ours = (*plain, "--configfile", "zoo.yaml", *settings)

    first_plan = median_run(*ours, "--dry-run", cwd=zoo)
    built = run(*ours, cwd=zoo)
    jobs = count_jobs(zoo)
    (trivial / "Snakefile").write_text(FLOOR.format(jobs=jobs - 1))
    floor_plan = median_run(*plain, "--dry-run", "--quiet", "all", cwd=trivial)
    floor_built = run(*plain, "--quiet", "all", cwd=trivial)
    rows = [row("plan, nothing built", jobs, first_plan, floor_plan), row("build", jobs, built, floor_built)]

    idle_plan, floor_idle_plan = median_run(*ours, "--dry-run", cwd=zoo), median_run(*plain, "--dry-run", cwd=trivial)
    idle, floor_idle = median_run(*ours, cwd=zoo), median_run(*plain, cwd=trivial)
    rows += [row("plan, all built", 0, idle_plan, floor_idle_plan), row("run, all built", 0, idle, floor_idle)]

    run(sys.executable, "-c", CHANGE, zoo / "checkpoints/0/model.safetensors")
    changed_plan, changed = median_run(*ours, "--dry-run", cwd=zoo), run(*ours, cwd=zoo)
    rows += [row("plan, one layer changed", 0, changed_plan, None)]
    rows += [row("build, one layer changed", count_jobs(zoo), changed, None)]
    table(("what", "jobs", "axzoo, s", "trivial jobs, s", "ratio", "peak of a process, MB"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=40, metavar="N")
    parser.add_argument("--layers-per-job", type=int, metavar="N", help="default: depends on the size of the layers")
    args = parser.parse_args()
    if not (CHECKPOINT / "source.json").exists():
        sys.exit("run `make demo` first: the benchmark uses its tokenizer")
    settings = [] if args.layers_per_job is None else ["--config", f"layers_per_job={args.layers_per_job}"]
    folder = Path(tempfile.mkdtemp(dir=ROOT / "results", prefix="bench-"))
    try:
        bench(folder, args.models, settings)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
