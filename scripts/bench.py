"""Measure the figures of docs/performance.md with the demo's model. Run `make demo` first.

    python scripts/bench.py [--text FILE]

The figures depend on the machine and its load, so compare ratios. With --text, fidelity is also measured on that text.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODEL = "SmolLM2-135M-Instruct-Q4_1"
CHECKPOINT = ROOT / "results/checkpoints" / MODEL
PARTS = ("Snakefile", "workflow", "profiles", "config")


@dataclass(frozen=True)
class Run:
    """A finished process: wall and CPU seconds, and the peak memory of its largest process in MB (of 2**20 bytes)."""

    wall: float
    cpu: float
    peak_mb: float


def run(*command: str | Path, cwd: Path = ROOT) -> Run:
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([str(word) for word in command], cwd=cwd, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            output.seek(0)
            sys.exit(f"{' '.join(map(str, command))} failed:\n{output.read().decode()}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    print(flush=True)


def project(folder: Path) -> Path:
    """A new project folder that already contains the fetched checkpoint."""
    for part in PARTS:
        (folder / part).symlink_to(ROOT / part)
    fetched = folder / "results/checkpoints" / MODEL
    shutil.copytree(CHECKPOINT, fetched, copy_function=os.link)
    return folder


SHORTEN = """
import json, shutil, sys
from pathlib import Path
from safetensors import safe_open
from safetensors.numpy import save_file

source, target, layers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
with safe_open(source / "model.safetensors", "numpy") as file:
    names = [name for name in file.keys() if ".layers." not in name or int(name.split(".")[2]) < layers]
    save_file({name: file.get_tensor(name) for name in names}, target / "model.safetensors")
config = json.loads((source / "config.json").read_text())
(target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
"""
"""Makes a checkpoint of the first layers of another one.

It runs in a separate process, because the peak memory that the kernel reports for a child starts at that of its parent.
"""


def bench_memory(folder: Path) -> None:
    """Peak memory of the jobs, for models that differ only in their number of layers."""
    print("## Peak memory of jobs\n")
    rows = []
    for layers in (2, 8, 30):
        checkpoint, lock = folder / f"checkpoint-{layers}", folder / f"lock-{layers}"
        if layers == 30:
            checkpoint = CHECKPOINT
        else:
            run(sys.executable, "-c", SHORTEN, CHECKPOINT, checkpoint, str(layers))
        source = ("--source", checkpoint / "source.json")
        locking = run(
            "axzoo", "lock", *source, "--model_type", "llama", "--num_hidden_layers", str(layers), "--output", lock
        )
        jobs = []
        for part in ("layer_1", "post", "embed"):
            paths = ("--store", folder / f"store-{layers}", "--output", folder / "out", "--receipt", folder / "receipt")
            jobs.append(run("axzoo", "compile", "--lock", lock / f"{part}.json", *source, *paths, "--chip", "AX650"))
        rows.append(
            (
                layers,
                f"{(checkpoint / 'model.safetensors').stat().st_size / 1e6:.0f} MB",
                *(round(job.peak_mb) for job in (locking, *jobs)),
            )
        )
    table(("layers", "checkpoint", "lock, MB", "layer, MB", "post, MB", "embed, MB"), rows)


def stage_seconds(folder: Path) -> dict[str, tuple[int, float, float]]:
    """By rule: number of jobs, and total wall and CPU seconds, from Snakemake's benchmark files."""
    stages = {}
    for stage in sorted((folder / "results/benchmarks").iterdir()):
        rows = [next(csv.DictReader(path.open(), delimiter="\t")) for path in stage.rglob("*.tsv")]
        stages[stage.name] = (len(rows), sum(float(row["s"]) for row in rows), sum(_cpu(row) for row in rows))
    return stages


def _cpu(row: dict[str, str]) -> float:
    """CPU seconds. A job that ends before psutil's first sample has none, so its wall time is used instead."""
    try:
        return max(float(row["cpu_time"]), 0.0) or float(row["s"])
    except ValueError:
        return float(row["s"])


def bench_build(folder: Path) -> None:
    """A full build of the demo after installation and fetch: its stages, and the share of time not spent computing."""
    cores = os.cpu_count() or 1
    place = project(folder)
    snakemake = ("snakemake", "--cores", str(cores), "--configfile", "config/demo.yaml")
    built = run(*snakemake, cwd=place)
    again = run(*snakemake, cwd=place)
    stages = stage_seconds(place)
    start_up = min(run("axzoo", "compile", "--help").cpu for _ in range(5))
    imports = min(
        run(sys.executable, "-c", "import axzoo.backends.part_job, axzoo.backends.host.compiler").cpu for _ in range(5)
    )
    print(f"## Full build after installation and fetch, {cores} cores\n")
    table(("stage", "jobs", "wall s, summed", "CPU s, summed"), [(name, *row) for name, row in stages.items()])
    jobs = sum(count for count, _, _ in stages.values())
    computing = sum(cpu for _, _, cpu in stages.values()) - jobs * imports
    share = 1 - computing / (cores * built.wall)
    print(
        f"wall {built.wall:.1f} s; a verb starts in {start_up:.2f} CPU s, with the imports of a layer job in "
        f"{imports:.2f} CPU s"
    )
    print(f"not computing (start-up of {jobs} jobs, Snakemake, idle cores): {share:.0%} of {cores} cores x wall")
    print(f"running again with nothing to do: {again.wall:.1f} s\n", flush=True)


def bench_fidelity(text: Path | None) -> None:
    print("## Fidelity\n", flush=True)
    bundle = ROOT / "results/AX650" / f"{MODEL}-w8a16"
    where = ("--lock", ROOT / "results/locks" / MODEL, "--source", CHECKPOINT / "source.json")
    what = ("--text", text) if text else ()
    subprocess.run(
        ["axzoo", "fidelity", bundle, *where, "--prompts", ROOT / "scripts/prompts.txt", *what], check=True, cwd=ROOT
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not (CHECKPOINT / "source.json").exists():
        sys.exit("run `make demo` first: the benchmarks use its checkpoint and bundle")
    (ROOT / "results").mkdir(exist_ok=True)
    for bench in (bench_memory, bench_build):
        with tempfile.TemporaryDirectory(dir=ROOT / "results", prefix="bench-") as folder:
            bench(Path(folder))
    bench_fidelity(args.text)


if __name__ == "__main__":
    main()
