"""Build a model with MiniCPM-V 2.0's dimensions and random bf16 weights, and compare its vision model with the
published definition.

    python scripts/bench_vision.py FOLDER CONFIG [--picture FILE] [--only STEP ...]

CONFIG is config.json of openbmb/MiniCPM-V-2. Steps: `build` builds the model with Snakemake and prints its files, and
time and peak memory of its jobs; `checks` runs its checks; `run` asks about a picture; `parity` compiles the vision
model in fp32, bf16 and s8 and compares its rows for the picture, and for the picture's slices, with
tests/published/minicpmv.py. FOLDER keeps what is built, up to 15 GB. Memory is in MB (of 2**20 bytes).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import PARTS, ROOT, table

NAME = "MiniCPM-V-2-random"
BUNDLE = f"results/AX650/{NAME}-w8a16"
SIZES = {"layer": 61051392, "post": 282825216, "kv_width": 2304, "vision": 427261984}
PROMPT = "描述下图片"
PIECES = {"\n": 5, "<": 95396, "用户": 4194, "AI": 10850, ">": 95388}
"""Ids of MiniCPM-V 2.0's tokenizer, which make the documented prompt."""

SPREADS = {"embed_tokens": 1 / 12, "lm_head": 6 / 48, "pos_embed": 0.5, ".query": 0.5}
"""Standard deviations of tensors by a part of their name, where it is not the inverse root of their columns."""

FORMATS: dict[str, tuple[dict[str, Any], float]] = {
    "fp32": ({"weight_type": "fp32", "hidden_state_type": "fp32"}, 0.9999),
    "bf16": ({"weight_type": "bf16"}, 0.9999),
    "s8": ({}, 0.999),
}
"""Recipes, and the smallest cosine of a row that each must have."""


def published(config: dict[str, Any]) -> Any:
    """The vision model in its published definition, without values."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch

    from axzoo.model.reading import spec_of
    from published.minicpmv import Resampler, Tower, Vision

    spec = spec_of(config, Path("config.json"), ()).vision
    assert spec is not None
    sizes = (spec.num_attention_heads, spec.num_hidden_layers, spec.patch_size, spec.position_grid)
    with torch.device("meta"):
        tower = Tower(spec.hidden_size, spec.intermediate_size, *sizes)
        return Vision(tower, Resampler(spec.queries, spec.output_size, spec.resampler_heads, spec.hidden_size))


def generate(config_path: Path, folder: Path) -> None:
    """Write the checkpoint: one shard per layer of the language model, per block of the tower, and for the rest."""
    config = json.loads(config_path.read_text())
    tower = published(config).state_dict()
    from random_shards import RandomShards

    import tiny_vision
    from published import minicpm

    shapes: dict[str, tuple[int, ...]] = {f"llm.{name}": shape for name, shape in minicpm.shapes(config).items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in tower.items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        found = re.match(r".*(layers|blocks)\.\d+\.|.*embed_tokens|.*lm_head", name)
        shards.setdefault(found[0] if found else "", []).append(name)
    writer = RandomShards(folder, len(shards))

    def values(name: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return writer.vector(shape[0], float(name.endswith("weight")))
        spread = next((spread for part, spread in SPREADS.items() if part in name), None)
        return writer.matrix(shape[0], math.prod(shape[1:]), spread).reshape(shape)

    for names in shards.values():
        writer.save({name: values(name, shapes[name]) for name in names})
    writer.finish()
    shutil.copy(config_path, folder / "config.json")
    tiny_vision.write_tokenizer(folder, tiny_vision.tokenizer(config["vocab_size"], PIECES))


def make_project(folder: Path, config: Path) -> None:
    """A project whose matrix has the generated model."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if not (folder / part).exists():
            (folder / part).symlink_to(ROOT / part)
    recipe = {"prefill_len": 128, "kv_cache_len": 1023, "chips": ["AX650"]}
    model = {"path": "checkpoint", "model_type": "minicpmv", "num_hidden_layers": 40, "sizes": SIZES, "chat": False}
    matrix = {"models": {NAME: model | recipe | {"prompt": f"<用户>{PROMPT}<AI>"}}}
    (folder / "matrix.yaml").write_text(json.dumps(matrix))  # JSON is YAML
    if not (folder / "checkpoint").exists():
        partial = folder / "checkpoint.partial"
        partial.mkdir()
        job = measure("generate", [sys.executable, __file__, partial, config, "--generate"], folder)
        table(("job", "wall, s", "peak, MB"), [job])
        partial.rename(folder / "checkpoint")


def measure(name: str, command: Sequence[object], folder: Path) -> tuple[str, float, int]:
    """Run a command; return its name, seconds, and peak memory. Its output goes to FOLDER/NAME.log."""
    start = time.perf_counter()
    with (folder / f"{name}.log").open("wb") as log:
        words = [str(word) for word in command]
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed:\n{(folder / f'{name}.log').read_text()[-4000:]}")
    return name, time.perf_counter() - start, usage.ru_maxrss // 1024


def build(folder: Path) -> None:
    command = ["snakemake", "--cores", "2", f"{BUNDLE}/manifest.json", "--configfile", "matrix.yaml"]
    print(f"build: {measure('build', command, folder)[1]:.0f} s\n")
    present = {path.name: path.stat().st_size for path in (folder / BUNDLE).iterdir() if path.is_file()}
    documented = [f"minicpmv_p128_l{index}_together.axmodel" for index in range(40)]
    documented += ["minicpmv_post.axmodel", "model.embed_tokens.weight.bfloat16.bin", "vpm_resampler.axmodel"]
    if missing := set(documented) - set(present):
        sys.exit(f"the bundle lacks {sorted(missing)}")
    shown = [name for name in sorted(present) if not re.search(r"_l([2-9]|\d\d)_", name)]
    table(("file", "MB"), [(name, round(present[name] / 2**20)) for name in shown])
    print(f"and layers 2 to 39; {len(present)} files with {sum(present.values()) / 2**30:.2f} GB\n")
    show_jobs(folder)


def checks(folder: Path) -> None:
    measure("checks", ["snakemake", "--cores", "2", "--configfile", "matrix.yaml"], folder)
    show_jobs(folder)
    report = json.loads((folder / f"results/checks/AX650/{NAME}-w8a16/vision.json").read_text())
    blocks = [(one["name"], f"{one['cosine']:.6f}", f"{one['relative_l2']:.5f}") for one in report["blocks"]]
    table(("comparison", "cosine", "relative L2"), blocks)


def show_jobs(folder: Path) -> None:
    """Time and memory of finished jobs, from Snakemake's benchmark files."""
    rows = []
    for stage in sorted((folder / "results/benchmarks").iterdir()):
        jobs = [next(csv.DictReader(path.open(), delimiter="\t")) for path in stage.rglob("*.tsv")]
        seconds = [float(job["s"]) for job in jobs]
        memory = [float(job["max_rss"]) for job in jobs if job["max_rss"] not in ("NA", "-", "")]
        peak = round(max(memory)) if memory else ""
        rows.append((stage.name, len(jobs), round(sum(seconds), 1), round(max(seconds), 1), peak))
    table(("job", "number", "all, s", "longest, s", "largest peak, MB"), rows)


def ask(folder: Path, picture: Path) -> None:
    options = ["--image", picture, "--prompt", PROMPT, "--greedy", "--max-tokens", "16"]
    job = measure("run", ["axzoo", "run", BUNDLE, *options], folder)
    table(("job", "wall, s", "peak, MB"), [job])
    print((folder / "run.log").read_text())


def parity(folder: Path, picture: Path, formats: Sequence[str]) -> None:
    """Compare every format, each in a process of its own."""
    rows = []
    for name in formats:
        recipe, least = FORMATS[name]
        given = json.dumps({"image_slices": True, **recipe})
        lock = ("--lock", f"results/locks/{NAME}/vision.json", "--source", f"results/checkpoints/{NAME}/source.json")
        output = folder / "parity" / name / "vpm_resampler.axmodel"
        paths = ("--store", "parity/store", "--output", output, "--receipt", f"parity/{name}/receipt.json")
        job = measure(
            f"compile-{name}", ["axzoo", "compile", *lock, *paths, "--chip", "AX650", "--recipe", given], folder
        )
        found = measure(f"compare-{name}", [sys.executable, __file__, folder, output, "--compare", picture], folder)
        result = json.loads((folder / f"compare-{name}.log").read_text().splitlines()[-1])
        if min(result["whole"], *result["slices"]) < least:
            sys.exit(f"{name}: the smallest cosine must be {least}, not {result}")
        size = output.stat().st_size / 2**20
        worst = f"{min(result['slices']):.7f} ({len(result['slices'])} parts)"
        rows.append((name, f"{size:.0f}", round(job[1]), job[2], f"{result['whole']:.7f}", worst, round(found[1])))
        output.unlink()
        shutil.rmtree(folder / "parity/store")
    head = ("weights", "file, MB", "compile, s", "compile, MB", "280 x 280", "slices", "comparison, s")
    table(head, rows)


def compare(folder: Path, file: Path, picture: Path) -> None:
    """Print the smallest cosines of a row for a picture, and for each of its slices."""
    config = json.loads((folder / "checkpoint/config.json").read_text())
    want = published(config)
    import numpy as np
    import torch
    from safetensors import safe_open

    from axzoo.check.metrics import cosine
    from axzoo.model.slices import slicing
    from axzoo.runtime.bundle_folder import VisionFiles
    from axzoo.runtime.image_encoder import VisionModel
    from axzoo.runtime.images import read_picture, resampled, resized

    values = {}
    for shard in sorted((folder / "checkpoint").glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            names = [name for name in tensors.keys() if not name.startswith("llm.")]  # noqa: SIM118 - not a mapping
            values |= {name: tensors.get_tensor(name).float() for name in names}
    want.load_state_dict(values, assign=True)
    del values
    pixels = read_picture(picture)
    model = VisionModel(VisionFiles({"vision": file}, 280, 280, tokens=(101, 0, 102)))
    plan = slicing(pixels.shape[:2], 9, 448, 14)
    refined, (height, width) = resampled(pixels, *plan.refined), plan.slice_size
    cut = [
        refined[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(plan.rows)
        for column in range(plan.columns)
    ]

    def smallest(got: Any, image: Any) -> float:
        rows = want.rows(torch.from_numpy(np.array(image))).numpy()
        return float(min(map(cosine, np.asarray(got, np.float32), rows)))

    whole = smallest(model.encode(pixels).blocks[0], resized(pixels, 280, 280))
    blocks = model.encode_slices(pixels).blocks
    parts = [resampled(pixels, *plan.overview), *cut]
    slices = [smallest(*pair) for pair in zip(blocks, parts, strict=True)]
    print(json.dumps({"whole": whole, "slices": slices}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a picture of more than 448 x 448 pixels")
    parser.add_argument("--only", nargs="+", default=["build", "checks", "run", "parity"], metavar="STEP")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), help="those of `parity`")
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.generate:  # in processes of their own, because a child's peak memory starts at that of its parent
        generate(args.config, args.folder)
        return
    if args.compare:
        compare(args.folder, args.config, args.compare)
        return
    folder = args.folder.resolve()
    make_project(folder, args.config.resolve())
    picture = args.picture.resolve() if args.picture else drawn_picture(folder)
    for name, step in {"build": build, "checks": checks}.items():
        if name in args.only:
            step(folder)
    if "run" in args.only:
        ask(folder, picture)
    if "parity" in args.only:
        parity(folder, picture, args.formats)


def drawn_picture(folder: Path) -> Path:
    """The picture of `axzoo check-vision`, as a file."""
    path = folder / "picture.png"
    write = "import sys; from PIL import Image; from axzoo.check.vision_blocks import generated_picture as picture; "
    write += "Image.fromarray(picture(420, 560)).save(sys.argv[1])"
    subprocess.run([sys.executable, "-c", write, path], check=True)
    return path


if __name__ == "__main__":
    main()
