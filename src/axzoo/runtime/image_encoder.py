"""Runs a bundle's vision model: a picture in, the embedding rows that replace it in a prompt out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.model.slices import Slicing, slicing
from axzoo.model.vision_positions import position_ids
from axzoo.runtime.bundle_folder import VisionFiles
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.images import Pixels, resampled, resized
from axzoo.runtime.model import Model
from axzoo.runtime.prompting import PICTURE_TOKENS, picture_placeholder


@dataclass(frozen=True)
class EncodedImage:
    """The embedding rows of a picture: those of its overview first, then those of its slices, row by row.

    Each block is bf16 [queries, hidden_size]. `slices` is the grid (rows, columns), (0, 0) without slices. `tokens` are
    the ids before, for and after the rows of a block.
    """

    blocks: tuple[NDArray[Any], ...]
    slices: tuple[int, int]
    tokens: tuple[int, int, int]

    @property
    def placeholder(self) -> str:
        """The text that stands for the picture in a prompt."""
        return picture_placeholder(len(self.blocks[0]), self.slices)


class VisionModel:
    """A vision model in one file, or as tower and resampler in two.

    Raises AxzooError when a file is missing, damaged or does not belong to a vision model, or nothing says which tokens
    stand for pictures.
    """

    def __init__(self, files: VisionFiles) -> None:
        self._files = files
        if files.tokens is None:
            raise AxzooError(
                f"{next(iter(files.files.values())).parent / 'config.json'} has no picture_tokens: build the bundle "
                f"again from a checkpoint whose tokenizer has the tokens {', '.join(PICTURE_TOKENS)}"
            )
        self._tokens = files.tokens
        names = ("vision",) if "vision" in files.files else ("encoder", "resampler")
        self._sessions = [InferenceSession(files.files[name]) for name in names]
        first = self._sessions[0]
        shapes = [first.get_inputs(group)[0].shape for group in range(first.num_shape_groups)]
        self._groups = {(shape[1], shape[2]): group for group, shape in enumerate(shapes)}
        ids = [node for node in self._sessions[-1].get_inputs(0) if node.name == "pos_embed_ids"]
        if not ids or (files.height, files.width) not in self._groups:
            raise AxzooError(
                f"{files.files[names[0]]} does not take pictures of {files.width} x {files.height} pixels: "
                "build the bundle again"
            )
        patches = ids[0].shape[0]
        self._patch_size = round((files.height * files.width / patches) ** 0.5)

    def require_slices(self) -> None:
        """Raises AxzooError when the file was not built for the sizes of slices."""
        if len(self._groups) == 1:
            raise AxzooError("this bundle was built without slices: set image_slices: true and build it again")

    def encode(self, picture: Pixels) -> EncodedImage:
        """Encode a picture of any size, resized to the file's size."""
        rows = self._rows(resized(picture, self._files.height, self._files.width))
        return EncodedImage((rows,), (0, 0), self._tokens)

    def encode_slices(self, picture: Pixels) -> EncodedImage:
        """Encode a picture as overview and slices, as the original model does.

        Raises AxzooError when the file was not built for slices, or the picture is too long and narrow.
        """
        self.require_slices()
        plan = slicing(picture.shape[:2], self._files.max_slice_nums, self._files.scale_resolution, self._patch_size)
        overview = self._rows(resampled(picture, *plan.overview))
        if not plan.rows:
            return EncodedImage((overview,), (0, 0), self._tokens)
        slices = tuple(self._rows(part) for part in _cut(resampled(picture, *plan.refined), plan))
        return EncodedImage((overview, *slices), (plan.rows, plan.columns), self._tokens)

    def _rows(self, pixels: Pixels) -> NDArray[Any]:
        size = pixels.shape[:2]
        if size not in self._groups:
            raise AxzooError(
                f"the picture is too long and narrow to be cut into slices of {size[1]} x {size[0]} pixels"
            )
        group = self._groups[size]
        ids = position_ids(size[0] // self._patch_size, size[1] // self._patch_size)
        value: NDArray[Any] = np.ascontiguousarray(pixels)[None]
        for session in self._sessions:
            names = [node.name for node in session.get_inputs(group)]
            feed = {"input": value, "pos_embed_ids": ids}
            value = session.run(["output"], {name: feed[name] for name in names}, None, group)[0]
        rows: NDArray[Any] = value[0]
        return rows


def _cut(pixels: Pixels, plan: Slicing) -> list[Pixels]:
    height, width = plan.slice_size
    corners = [(row * height, column * width) for row in range(plan.rows) for column in range(plan.columns)]
    return [pixels[top : top + height, left : left + width] for top, left in corners]


def insert_rows(model: Model, ids: Sequence[int], images: Sequence[EncodedImage]) -> list[int]:
    """Replace the placeholders of `images` in a prompt by the ids of their rows.

    A placeholder is as many tokens for rows as a block has, between the tokens for the start and the end of a picture.
    Raises AxzooError when their number differs from that of the images' blocks.
    """
    filled = list(ids)
    blocks = [block for image in images for block in image.blocks]
    if not blocks:
        return filled
    (start, row, end), length = images[0].tokens, len(blocks[0])
    pattern = [start, *[row] * length, end]
    last = len(filled) - len(pattern)
    found = [i for i in range(last + 1) if filled[i] == start and filled[i : i + len(pattern)] == pattern]
    if len(found) != len(blocks):
        raise AxzooError(
            f"the prompt has {len(found)} places for {len(blocks)} parts of pictures: omit {PICTURE_TOKENS[0]} and "
            f"{PICTURE_TOKENS[2]} in the text, or use the tokenizer of the model"
        )
    for index, block in zip(found, blocks, strict=True):
        filled[index + 1 : index + 1 + length] = model.add_rows(block)
    return filled
