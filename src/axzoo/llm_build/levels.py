"""What the checks of a build found, shown as `llm_build` shows it."""

from __future__ import annotations

from pathlib import Path

from loguru import logger

from axzoo.files import read_json
from axzoo.zoo.build import Build

REPORTS = {1: "layers", 2: "generation"}
"""The check's files, by level: <name>.json and <name>.log."""


def show_layers(report: Path) -> None:
    """Level 1: the first layer in the document's words, then the worst of all."""
    layers = read_json(report)["layers"]
    kinds = [kind for kind in ("decode", "prefill") if layers[0][kind]]
    for kind in kinds:
        logger.info(f"{kind} layer0_gt layer0_got cos_sim is: {layers[0][kind]['cosine']}")
    worst = min(layer[kind]["cosine"] for layer in layers for kind in kinds)
    logger.info(f"all {len(layers)} layers: cos_sim is at least {worst}")


def show_generation(log: Path, build: Build, output: Path) -> None:
    """Level 2: the whole simulation, its files called by the names they have in `output`."""
    text = log.read_text().replace(f"load {build.bundle}/", f"load {output}/")
    print(text, end="", flush=True)
