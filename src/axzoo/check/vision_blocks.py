"""The check of a vision model: every block of the compiled files against the fp32 oracle, on a picture.

Each block of the oracle gets the input that the file's block had, so the error of a block does not include the errors
of earlier ones; so does the resampler. The last entry compares the rows that the files return with those of the whole
oracle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from axzoo.backends.host.contract import loadable_header
from axzoo.backends.host.outline import map_file
from axzoo.check.metrics import cosine, relative_l2
from axzoo.core.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.model import vision_oracle
from axzoo.model.oracle import Weights
from axzoo.model.spec import VisionSpec
from axzoo.model.vision_positions import position_ids
from axzoo.runtime.bundle_folder import VisionFiles
from axzoo.runtime.exact.session import ExactSession
from axzoo.runtime.images import Pixels

SEED = 0
WHOLE = "rows"
"""The comparison with the whole oracle."""


@dataclass(frozen=True)
class BlockLimits:
    """The smallest cosine and the largest relative L2 error of a sound block."""

    min_cosine: float
    max_relative_l2: float

    def of(self, name: str) -> BlockLimits:
        """The limits of a comparison. The errors of all blocks together may be twice as large."""
        return BlockLimits(1 - 4 * (1 - self.min_cosine), 2 * self.max_relative_l2) if name == WHOLE else self


LIMITS: Mapping[str, BlockLimits] = {
    "fp32": BlockLimits(0.9999, 0.01),
    "fp16": BlockLimits(0.9998, 0.02),
    "bf16": BlockLimits(0.9998, 0.02),
    "s8": BlockLimits(0.9995, 0.03),
    "s4": BlockLimits(0.95, 0.35),
}
"""By weight type: about twice the errors of random models with 2 to 26 blocks (docs/vision.md). They do not depend on
the depth, because a block gets the input that the file's block had. No trained checkpoint was measured."""


@dataclass(frozen=True)
class BlockCheck:
    """The smallest cosine of a row with the oracle's, and the relative L2 error of all rows; for a block, that of what
    it adds to its input, because a large input would hide errors."""

    name: str
    cosine: float
    relative_l2: float

    def passes(self, limits: BlockLimits) -> bool:
        """Whether both are within the limits; NaN is not."""
        return self.cosine >= limits.min_cosine and self.relative_l2 <= limits.max_relative_l2


def generated_picture(height: int, width: int) -> Pixels:
    """A generated RGB picture with statistics of photographs, though it is none: amplitudes fall with the inverse of
    the spatial frequency, colors vary together, and shaded objects have sharp edges."""
    rng = np.random.default_rng(SEED)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    shared = _natural_noise(rng, height, width)
    picture = np.stack([128 + 45 * shared + 12 * _natural_noise(rng, height, width) for _ in range(3)], axis=-1)
    for _ in range(6):
        center, radius, color = rng.random(2), rng.uniform(0.05, 0.3), rng.uniform(0, 255, 3)
        inside = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2
        picture[inside] = color + 40 * shared[inside, None]
    shade = 1.2 - 0.4 * rows[..., None]
    pixels: Pixels = np.clip(picture * shade + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
    return pixels


def _natural_noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Noise [height, width] whose amplitude falls with the inverse of the frequency; mean 0, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    values = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency, s=(height, width))
    return values / max(float(values.std()), 1e-9)


def check_vision(
    files: VisionFiles, spec: VisionSpec, weights: Weights, picture: Pixels | None = None
) -> Iterator[BlockCheck]:
    """Yields one result for the patches, each block, the tower's output, the resampler, and the rows of all together.

    `weights` are the checkpoint's by role; they may be read when they are used. `picture` has the size of the files;
    without one, it is generated.
    """
    picture = generated_picture(files.height, files.width) if picture is None else picture
    image = torch.from_numpy(picture)
    ids = position_ids(*spec.grid(files.height, files.width))
    names = ["patch/positions/Add", *(f"blocks.{i}/mlp/Add" for i in range(spec.num_hidden_layers))]
    names.append("norm/LayerNormalization")
    tower = files.files.get("vision") or files.files["encoder"]
    feed: dict[str, NDArray[Any]] = {"input": picture[None], "pos_embed_ids": ids}
    found, outputs = _run(tower, feed, names, (1, len(ids), spec.hidden_size))
    with torch.inference_mode():
        patches, *blocks, normed = (torch.from_numpy(value[0]) for value in found)
        yield _compared("patches", patches, vision_oracle.patches(spec, weights, image))
        for index, (given, got) in enumerate(zip([patches, *blocks], blocks, strict=False)):
            yield _compared(f"block {index}", got, vision_oracle.block(spec, weights, index, given), given)
        last = blocks[-1] if blocks else patches
        yield _compared("tower", normed, vision_oracle.tower_output(spec, weights, last))
        if "resampler" in files.files:
            normed = torch.from_numpy(outputs[0].astype(np.float32))
            _, outputs = _run(files.files["resampler"], {**feed, "input": outputs}, [], ())
        rows = torch.from_numpy(outputs[0].astype(np.float32))
        yield _compared("resampler", rows, vision_oracle.resampler(spec, weights, normed, ids))
        whole = vision_oracle.resampler(spec, weights, vision_oracle.tower(spec, weights, image), ids)
        yield _compared(WHOLE, rows, whole)


def _compared(name: str, got: Tensor, want: Tensor, given: Tensor | None = None) -> BlockCheck:
    rows = [cosine(mine, theirs) for mine, theirs in zip(got.numpy(), want.numpy(), strict=True)]
    worst = min(rows) if np.isfinite(rows).all() else float("nan")
    start = torch.zeros_like(got) if given is None else given
    return BlockCheck(name, worst, relative_l2((got - start).numpy(), (want - start).numpy()))


def _run(
    path: Path, feed: Mapping[str, NDArray[Any]], names: Sequence[str], shape: tuple[int, ...]
) -> tuple[list[NDArray[np.float32]], NDArray[Any]]:
    """Run a file in exact mode, in which weights stay in the mapped file.

    Returns the values `names` of `shape` inside its graph, fp32, and its output.
    """
    (group, *_) = loadable_header(path, path).groups
    session = ExactSession(memoryview(map_file(path)), names)
    (output,) = group.outputs
    values = [np.empty(shape, np.float32) for _ in names]
    result = np.empty(output.shape, NUMPY_DTYPES[output.dtype])
    given = {
        tensor.name: (np.ascontiguousarray(feed[tensor.name].astype(NUMPY_DTYPES[tensor.dtype])), tensor.dtype)
        for tensor in group.inputs
    }
    inputs = {name: (array, ONNX_DTYPES[dtype]) for name, (array, dtype) in given.items()}
    inside = {name: (value, ONNX_DTYPES["fp32"]) for name, value in zip(names, values, strict=True)}
    session.run(inputs, {**inside, output.name: (result, ONNX_DTYPES[output.dtype])})
    return values, result
