"""Compare inference speed with llama.cpp and onnxruntime-genai, and the predictions of fast mode with exact mode.

    python scripts/bench_speed.py PYTHON [--rounds N] [--tokens N]

PYTHON is the interpreter of an environment with axzoo[bench]. Run `make demo` first. cmake and a C++ compiler are
needed: llama.cpp is built from source, and a second time without AMX if the CPU has AMX. Rounds alternate between the
programs. The first table shows medians for a 128-token prompt and for generating 128 tokens from an empty context, the
second the time and memory of loading. The third compares the modes on self-generated text: the prediction of each token
from the tokens before it, and the prediction after prompts that are taken from the text.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from bench import CHECKPOINT, MODEL, ROOT, table
from bench_builders import CONVERTER, fetch_llama_cpp
from numpy.typing import NDArray

from axzoo.runtime.model import Mode, Model, load_model

BUNDLE = ROOT / "results/AX650" / f"{MODEL}-w8a16"
COUNT = 128
THREADS = str(os.cpu_count() or 1)

GENAI = """
import json, sys, time
import numpy as np
import onnxruntime_genai as og

model, count = og.Model(sys.argv[1]), int(sys.argv[2])
prompt = np.random.default_rng(0).integers(1000, 40000, count).tolist()


def timed(ids, steps):
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, min_length=2 * count + 1, max_length=2 * count + 2)
    generator = og.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens(ids)
    generator.get_logits()
    read = time.perf_counter()
    for _ in range(steps):
        generator.generate_next_token()
    return count / (read - start), steps / (time.perf_counter() - read)


timed(prompt, 4)
print(json.dumps([timed(prompt, 1)[0], timed(prompt[:1], count)[1]]))
"""

Speed = tuple[float, float]
"""Tokens per second in prefill and in decode."""


def axzoo(mode: Mode, preload: str = "") -> Callable[[], Speed]:
    return lambda: tuple(run_in_process("print_speed", mode, preload))  # type: ignore[return-value]


def run_in_process(function: str, mode: Mode, preload: str = "") -> list[float]:
    """Run a function of this module in a new process, with `mode` as argument; return the numbers it prints."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import bench_speed; bench_speed.{function}()"
    command, env = [sys.executable, "-c", code, mode], os.environ | {"LD_PRELOAD": preload}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    found: list[float] = json.loads(done.stdout)
    return found


def print_loading() -> None:
    """Print the seconds to load a model in the mode in sys.argv, and its resident memory in MB (of 2**20 bytes)."""
    start = time.perf_counter()
    model = load_model(BUNDLE, sys.argv[1])  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    model.prefill([1000] * COUNT)
    kilobytes = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    print(json.dumps([seconds, int(kilobytes[1]) / 1024 if kilobytes else 0]))


def print_speed() -> None:
    """Print the speed of the mode in sys.argv."""
    model = load_model(BUNDLE, sys.argv[1])  # type: ignore[arg-type]
    prompt = [int(i) for i in np.random.default_rng(0).integers(1000, 40000, COUNT)]
    model.prefill(prompt)
    model.reset()
    start = time.perf_counter()
    model.prefill(prompt)
    read = time.perf_counter() - start
    model.reset()
    token = prompt[0]
    start = time.perf_counter()
    for _ in range(COUNT):
        token = int(model.decode(token).argmax())
    print(json.dumps([COUNT / read, COUNT / (time.perf_counter() - start)]))


def llama_cpp(program: Path, gguf: Path) -> Callable[[], Speed]:
    words = ("-m", gguf, "-p", COUNT, "-n", COUNT, "-t", THREADS, "-r", "1", "-o", "json")

    def speed() -> Speed:
        done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=True)
        prompt, answer = json.loads(done.stdout)
        return prompt["avg_ts"], answer["avg_ts"]

    return speed


def genai(python: Path, folder: Path) -> Callable[[], Speed]:
    def speed() -> Speed:
        command = (str(python), "-c", GENAI, str(folder), str(COUNT))
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return tuple(json.loads(done.stdout))

    return speed


def build_genai_model(python: Path, cache: Path, bits: str) -> Path:
    folder = cache / f"genai-{bits}"
    if not (folder / "genai_config.json").exists():
        paths = ("-i", CHECKPOINT, "-o", folder, "-c", cache / "genai-cache")
        builder = (python, "-m", "onnxruntime_genai.models.builder", *paths, "-e", "cpu", "-p", bits)
        subprocess.run(builder, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return folder


def build_llama_cpp_model(python: Path, cache: Path) -> tuple[Path, Path]:
    """The sources of llama.cpp, and the model in Q8_0."""
    sources = fetch_llama_cpp(python, cache)
    gguf = cache / "q8_0.gguf"
    if not gguf.exists():
        convert = (python, sources / CONVERTER, CHECKPOINT, "--outtype", "q8_0", "--outfile", gguf)
        subprocess.run(convert, check=True, capture_output=True)
    return sources, gguf


def llama_bench(sources: Path, folder: str, *flags: str) -> Path:
    """Build llama-bench for this CPU, with additional compiler flags."""
    program = sources / folder / "bin/llama-bench"
    if not program.exists():
        print(f"building {program.relative_to(sources.parent)}, which takes some minutes", file=sys.stderr)
        fix_tile_configuration(sources)
        disabled = [f"-DLLAMA_{part}=OFF" for part in ("CURL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER")]
        compiler = [f"-DCMAKE_{language}_FLAGS={' '.join(flags)}" for language in ("C", "CXX")]
        options = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", *disabled, *compiler)
        make = ("cmake", "--build", folder, "--target", "llama-bench", "--parallel", THREADS)
        for command in (("cmake", "-B", folder, *options), make):
            subprocess.run(command, check=True, cwd=sources, stdout=subprocess.DEVNULL)
    return program


def fix_tile_configuration(sources: Path) -> None:
    """Work around gcc 12, whose _tile_loadconfig does not declare the memory that it reads.

    gcc therefore drops the stores of the AMX tile configuration, and llama-bench dies with SIGILL without a barrier.
    """
    file = sources / "ggml/src/ggml-cpu/amx/mmq.cpp"
    load, barrier = "_tile_loadconfig(&tc);", 'asm volatile("" : : "r"(&tc) : "memory");'
    text = file.read_text()
    if barrier not in text:
        file.write_text(text.replace(load, f"{barrier}\n    {load}"))


def hide_amx(cache: Path) -> str:
    """Build the library that prevents a process from using AMX when it is preloaded; return its path."""
    library = cache / "hide_amx.so"
    subprocess.run(("cc", "-shared", "-fPIC", "-o", library, ROOT / "scripts/hide_amx.c", "-ldl"), check=True)
    return str(library)


def report_speed(programs: dict[str, Callable[[], Speed]], rounds: int) -> None:
    speeds: dict[str, list[Speed]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, speed in programs.items():
            speeds[name].append(speed())
    middle = {name: [median(one) for one in zip(*each, strict=True)] for name, each in speeds.items()}
    base = next(iter(middle.values()))
    rows = [
        (name, *(f"{value:.1f} ({value / first:.2f})" for value, first in zip(values, base, strict=True)))
        for name, values in middle.items()
    ]
    table(("program", f"{COUNT}-token prompt, token/s", "answer, token/s"), rows)


def report_loading(rounds: int) -> None:
    found: dict[Mode, list[list[float]]] = {"fast-prompts": [], "fast": [], "exact": []}
    for _ in range(rounds):
        for mode, runs in found.items():
            runs.append(run_in_process("print_loading", mode))
    rows = []
    for mode, runs in found.items():
        seconds, megabytes = (median(one) for one in zip(*runs, strict=True))
        rows.append((mode, f"{seconds:.1f}", f"{megabytes:.0f}"))
    table(("mode", "loading, s", "resident, MB"), rows)


def report_fidelity(tokens: int) -> None:
    """Compare the other modes with exact mode on texts sampled in exact mode, of up to 501 tokens each."""
    exact, fast, prompts = (load_model(BUNDLE, mode) for mode in ("exact", "fast", "fast-prompts"))
    rng = np.random.default_rng(0)
    decoded, prefilled_fast, prefilled_fast_prompts = Fidelity(), Fidelity(), Fidelity()
    while len(decoded.divergences) < tokens:
        exact.reset()
        fast.reset()
        text = [int(rng.integers(1000, 40000))]
        for _ in range(min(500, tokens - len(decoded.divergences))):
            expected = log_softmax(exact.decode(text[-1]))
            decoded.add(expected, log_softmax(fast.decode(text[-1])))
            text.append(int(rng.choice(len(expected), p=np.exp(expected))))
        for start in range(0, len(text) - COUNT, 8):
            expected, *found = (log_softmax(prefill(one, text[start:][:COUNT])) for one in (exact, fast, prompts))
            for fidelity, one in zip((prefilled_fast, prefilled_fast_prompts), found, strict=True):
                fidelity.add(expected, one)
    rows = [
        (f"decode, up to {len(text)} tokens", "fast, fast-prompts", *decoded.row()),
        (f"prefill of {COUNT} tokens", "fast", *prefilled_fast.row()),
        (f"prefill of {COUNT} tokens", "fast-prompts", *prefilled_fast_prompts.row()),
    ]
    table(("input", "mode", "predictions", "mean KL, nats", "largest KL", "top-1 agreement"), rows)


class Fidelity:
    """Statistics of how close predictions are to the expected ones."""

    def __init__(self) -> None:
        self.divergences: list[float] = []
        self._agreed = 0

    def add(self, expected: NDArray[np.float64], found: NDArray[np.float64]) -> None:
        self.divergences.append(float(np.sum(np.exp(expected) * (expected - found))))
        self._agreed += int(expected.argmax() == found.argmax())

    def row(self) -> tuple[object, ...]:
        kl = self.divergences
        return len(kl), f"{np.mean(kl):.5f}", f"{np.max(kl):.4f}", f"{self._agreed / len(kl):.4f}"


def prefill(model: Model, prompt: list[int]) -> NDArray[np.float32]:
    model.reset()
    return model.prefill(prompt)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    total: np.float64 = np.logaddexp.reduce(wide)
    return wide - total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="interpreter of the other programs' environment")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--tokens", type=int, default=2000, metavar="N")
    args = parser.parse_args()
    if not BUNDLE.exists():
        sys.exit("run `make demo` first: this script uses its bundle")
    python = args.python.absolute()
    cache = python.parent.parent / "downloads"
    sources, gguf = build_llama_cpp_model(python, cache)
    programs: dict[str, Callable[[], Speed]] = {
        "llama.cpp, Q8_0": llama_cpp(llama_bench(sources, "build"), gguf),
        "onnxruntime-genai, int8": genai(python, build_genai_model(python, cache, "int8")),
        "onnxruntime-genai, int4": genai(python, build_genai_model(python, cache, "int4")),
        "axzoo fast-prompts, s8": axzoo("fast-prompts"),
        "axzoo fast, s8": axzoo("fast"),
        "axzoo exact, s8": axzoo("exact"),
    }
    if "amx_int8" in Path("/proc/cpuinfo").read_text().split():
        without = llama_bench(sources, "build-without-amx", "-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
        programs["llama.cpp, Q8_0, without AMX"] = llama_cpp(without, gguf)
        programs["axzoo fast-prompts, s8, without AMX"] = axzoo("fast-prompts", hide_amx(cache))
    report_speed(programs, args.rounds)
    report_loading(args.rounds)
    report_fidelity(args.tokens)


if __name__ == "__main__":
    main()
