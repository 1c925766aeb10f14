"""Build and check three models with Qwen2.5-7B's dimensions at once, in a cgroup with a memory limit.

    python scripts/bench_large_zoo.py FOLDER [--memory GB] [--layers N] [--cores N]

Runs `snakemake --cores N` as a user does, in a memory cgroup that this script makes (version 1 or 2, which needs root),
so axzoo must find the limit by itself. Prints the peak memory of the jobs of every stage, as Snakemake's benchmarks
record it, and the peak and the kills of the cgroup. FOLDER keeps what is built, so the same command continues. Three
models of 3 layers take 20 GB of disk.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import bench_large

ROOT = Path(__file__).parent.parent
CGROUPS = Path("/sys/fs/cgroup")
MODELS = ("large-a", "large-b", "large-c")
SIZES = {
    "layer": sum(rows * columns for rows, columns in bench_large.MATRICES.values()),
    "post": bench_large.VOCABULARY * bench_large.HIDDEN,
    "kv_width": bench_large.KV_SIZE,
    "hidden_size": bench_large.HIDDEN,
    "intermediate_size": bench_large.INTERMEDIATE,
}


def link_workflow(folder: Path) -> None:
    """Make a project folder with the workflow and the chips of this checkout, and a folder for its matrix."""
    (folder / "config").mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "workflow", "config/chips.yaml"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)


def write_project(folder: Path, layers: int) -> None:
    """Write the matrix, and link the workflow."""
    link_workflow(folder)
    entries = [
        f"  {model}: {{path: {folder / model / 'checkpoint'}, model_type: qwen2, num_hidden_layers: {layers}, "
        f"sizes: {{{', '.join(f'{key}: {size}' for key, size in SIZES.items())}}}, chips: [AX650], "
        f"prompt: {bench_large.PROMPT!r}, prefill_len: 128, kv_cache_len: 1023}}\n"
        for model in MODELS
    ]
    (folder / "config/zoo.yaml").write_text("models:\n" + "".join(entries))


def make_cgroup(limit: int) -> tuple[Path, dict[str, str]]:
    """Make a memory cgroup with a limit in bytes. Returns its folder, and the names of its files."""
    legacy = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if legacy else CGROUPS) / f"bench_large_zoo_{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if legacy else "memory.max")).write_text(str(limit))
    peak = "memory.max_usage_in_bytes" if legacy else "memory.peak"
    return group, {"peak": peak, "events": "memory.oom_control" if legacy else "memory.events"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", type=float, default=16, metavar="GB", help="limit in GB of 10^9 bytes (16)")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--cores", type=int, default=8)
    parser.add_argument("--generate", action="store_true", help="only write the checkpoints")
    args = parser.parse_args()
    folder = args.folder.resolve()
    for seed, model in enumerate(MODELS):
        if not (folder / model / "checkpoint").exists():
            (folder / model).mkdir(parents=True, exist_ok=True)
            bench_large.write_checkpoint(folder / model, args.layers, seed)
    write_project(folder, args.layers)
    if args.generate:
        return
    group, files = make_cgroup(round(args.memory * 1e9))
    command = ["snakemake", "--cores", str(args.cores), "--directory", str(folder)]
    start = time.perf_counter()
    try:
        join = f'echo $$ > "{group}/cgroup.procs" && exec "$@"'
        done = subprocess.run(["sh", "-c", join, "sh", *command], cwd=folder, check=False)
        print(f"exit status {done.returncode} after {time.perf_counter() - start:.0f} s")
        print(f"peak of the cgroup, page cache included: {int((group / files['peak']).read_text()) >> 20} MB")
        print((group / files["events"]).read_text())
    finally:
        group.rmdir()
    print("| stage | jobs | longest, s | largest peak, MB |\n|---|---|---|---|")
    for stage in sorted((folder / "results/benchmarks").iterdir()):
        rows = [row for file in stage.rglob("*.tsv") for row in csv.DictReader(file.open(), delimiter="\t")]
        seconds, peaks = ([float(row[key]) for row in rows if row[key] not in ("-", "NA")] for key in ("s", "max_rss"))
        print(f"| {stage.name} | {len(rows)} | {max(seconds, default=0):.1f} | {max(peaks, default=0):.0f} |")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
