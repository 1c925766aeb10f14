"""Time and peak memory of check level 1 or 2 in two checkouts, in alternating rounds.

    python scripts/bench_checks.py BUNDLE BEFORE AFTER [--verb check-layers] [--rounds 5] [--threads 1]

BUNDLE is a finished bundle in a project's `results` folder; BEFORE and AFTER are checkouts. With one thread, CPU time
is comparable even on a busy machine: threads that wait for work do not count. Prints the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "What is the capital of France?"


def measure(verb: str, bundle: Path, checkout: Path, threads: int) -> tuple[float, float, float]:
    """Elapsed seconds, CPU seconds, and peak resident memory in MB of one check."""
    results = bundle.resolve().parent.parent
    model = json.loads((bundle / "manifest.json").read_text())["model"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-c", "from axzoo.cli import program; program()", verb, str(bundle)),
            *("--lock", str(results / "locks" / model), "--prompt", PROMPT),
            *("--source", str(results / "checkpoints" / model / "source.json"), "--output", f"{folder}/report.json"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": str(threads)}
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - start
    if status:
        raise SystemExit(f"{verb} failed in {checkout}")
    return elapsed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--verb", default="check-layers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        rounds.append([measure(args.verb, args.bundle, path, args.threads) for path in (args.before, args.after)])
        print(rounds[-1], file=sys.stderr, flush=True)
    print("| | elapsed, s | CPU, s | peak memory, MB |\n|---|---|---|---|")
    for number, name in enumerate(("before", "after")):
        numbers = [statistics.median(measured[number][i] for measured in rounds) for i in range(3)]
        print(f"| {name} | {numbers[0]:.2f} | {numbers[1]:.2f} | {numbers[2]:.0f} |")


if __name__ == "__main__":
    main()
