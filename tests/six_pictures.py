"""A small MiniCPM-V that is trained here to name six pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

import tiny_vision
from axzoo.runtime.images import read_picture, resized
from axzoo.tokenizer.local import load_tokenizer
from published import minicpm
from vision_bundle import EXACT, make_bundle

QUESTION = "what is it?"
NAMES = ("circle", "square", "cross", "stripes", "night", "grass")
RECIPE = replace(EXACT, weight_type="s8", post_weight_type="s8", hidden_state_type="bf16")


def draw(name: str, folder: Path) -> Path:
    """A picture of 300 x 200 pixels, with noise."""
    picture = Image.new("RGB", (300, 200), {"night": "navy", "grass": "green"}.get(name, "white"))
    pen = ImageDraw.Draw(picture)
    if name == "circle":
        pen.ellipse((80, 30, 220, 170), fill="red")
    elif name == "square":
        pen.rectangle((90, 40, 210, 160), fill="blue")
    elif name == "cross":
        pen.line((40, 20, 260, 180), fill="black", width=30)
        pen.line((260, 20, 40, 180), fill="black", width=30)
    elif name == "stripes":
        for left in range(0, 300, 60):
            pen.rectangle((left, 0, left + 30, 200), fill="orange")
    noise = np.random.default_rng(NAMES.index(name)).normal(0, 12, (200, 300, 3))
    pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    return path


def draw_all(folder: Path) -> dict[str, Path]:
    """The six pictures by name."""
    return {name: draw(name, folder) for name in NAMES}


def trained_bundle(pictures: Mapping[str, Path], root: Path) -> Path:
    """Train the model until it names every picture, and build it in s8."""
    checkpoint, vision = tiny_vision.make_checkpoint(root / "checkpoint")
    tokenizer = load_tokenizer(checkpoint)
    block = f"<image>{'<unk>' * tiny_vision.QUERIES}</image>\n"
    prompt = tokenizer.encode(f"<用户>{block}{QUESTION}<AI>", add_special_tokens=False)
    prompt = [1, *prompt] if prompt[0] != 1 else prompt
    start = prompt.index(tiny_vision.IMAGE) + 1
    examples = []
    for name, path in pictures.items():
        answer = [*tokenizer.encode(name, add_special_tokens=False), 2]
        examples.append(
            (torch.tensor(prompt + answer), len(answer), torch.from_numpy(resized(read_picture(path), 70, 70)))
        )

    config = tiny_vision.config()
    torch.manual_seed(5)
    weights = {name: torch.randn(shape) * (0.05 if len(shape) > 1 else 0) + (len(shape) == 1.0)
               for name, shape in minicpm.shapes(config).items()}  # fmt: skip
    parameters = [weight.requires_grad_() for weight in weights.values()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for tensors this small
    optimizer = torch.optim.Adam([*parameters, *vision.parameters()], lr=1e-2)
    for _ in range(300):
        total = torch.zeros(())
        for ids, length, image in examples:
            grid = image.shape[0] // 14, image.shape[1] // 14
            pixels = (image.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
            rows = vision.resampler(vision.vpm(pixels), grid)[0]
            logits = minicpm.logits(config, weights, ids, {start: rows})
            total = total + cross_entropy(logits[-length - 1 : -1], ids[-length:])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if float(total.detach()) < 0.06:
            break
    torch.set_num_threads(threads)
    stored = {f"llm.{name}": weight.detach() for name, weight in weights.items()} | vision.tensors()
    save_file({name: weight.contiguous() for name, weight in stored.items()}, checkpoint / "model.safetensors")
    return make_bundle(checkpoint, root, RECIPE)
