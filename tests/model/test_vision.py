"""Vision models: the oracle and the compiled files against the published definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import tiny_vision
from axzoo.backends.host.vision_graph import compile_vision
from axzoo.check.metrics import cosine
from axzoo.core.errors import AxzooError
from axzoo.model import vision_oracle
from axzoo.model.slices import slice_sizes
from axzoo.model.spec import DecoderSpec, VisionSpec
from axzoo.model.vision_positions import (
    interpolated_positions,
    interpolation,
    position_ids,
    resampler_tensors,
    sincos_positions,
    tower_tensors,
)
from axzoo.parts.image_groups import vision_groups
from axzoo.parts.kinds import kind_of
from axzoo.runtime.engine import InferenceSession
from axzoo.weights.recipe import Recipe
from published import minicpmv

HIDDEN = 64
SPEC = VisionSpec(14, 48, 100, 3, 4, 5, HIDDEN, 4, 2)
"""tiny_vision's dimensions, with two heads in the resampler."""

EXACT = Recipe(weight_type="fp32", hidden_state_type="fp32", image_size=70)


@pytest.fixture(scope="module")
def vision() -> minicpmv.Vision:
    torch.manual_seed(3)
    tower = minicpmv.Tower(48, 100, 4, 3, 14, 5)
    model = minicpmv.Vision(tower, minicpmv.Resampler(16, HIDDEN, 2, 48))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float("weight" in name), 0.3)
    return model


@pytest.fixture(scope="module")
def weights(vision: minicpmv.Vision) -> dict[str, Tensor]:
    stored = vision.tensors()
    refs = tower_tensors(SPEC) | resampler_tensors(SPEC)
    assert {ref.name: tuple(stored[ref.name].shape) for ref in refs.values()} == {
        ref.name: ref.shape for ref in refs.values()
    }
    assert {ref.name for ref in refs.values()} == set(stored)
    return {role: stored[ref.name][slice(*ref.rows)] if ref.rows else stored[ref.name] for role, ref in refs.items()}


def _image(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def _compiled(folder: Path, weights: dict[str, Tensor], stages: tuple[str, ...], recipe: Recipe) -> InferenceSession:
    kind = {2: "vision", 1: {"tower": "encoder", "resampler": "resampler"}[stages[0]]}[len(stages)]
    shapes = {role: tuple(tensor.shape) for role, tensor in weights.items()}
    made = compile_vision(kind, SPEC, stages, recipe, shapes, lambda role: [weights[role].numpy()])
    path = folder / f"{kind}.axmodel"
    path.write_bytes(b"".join(made.pieces))
    return InferenceSession(path)


def _run(session: InferenceSession, image: Tensor, group: int = 0) -> NDArray[np.float32]:
    ids = position_ids(*SPEC.grid(*image.shape[:2]))
    feed = {"input": image.numpy()[None], "pos_embed_ids": ids}
    return session.run(["output"], feed, None, group)[0][0].astype(np.float32)  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [(70, 70), (84, 56), (14, 140)])
def test_the_oracle_agrees_with_the_published_definition(
    vision: minicpmv.Vision, weights: dict[str, Tensor], size: tuple[int, int]
) -> None:
    image = _image(*size)
    with torch.inference_mode():
        rows = vision_oracle.tower(SPEC, weights, image)
        found = vision_oracle.resampler(SPEC, weights, rows, position_ids(*SPEC.grid(*size)))
    torch.testing.assert_close(rows, vision.tower_rows(image), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found, vision.rows(image), atol=2e-5, rtol=1e-4)


FORMATS = {
    "fp32": (EXACT, 0.9999999),
    "bf16": (replace(EXACT, weight_type="bf16", hidden_state_type="bf16"), 0.9999),
    "s8": (Recipe(image_size=70), 0.999),
    "s8, groups that do not divide every width": (Recipe(weight_group_size=32, image_size=70), 0.999),
    "s8, least squares": (Recipe(scale_rule="mse", image_size=70), 0.999),
}


@pytest.mark.parametrize(("recipe", "least"), FORMATS.values(), ids=list(FORMATS))
def test_the_compiled_file_agrees_with_the_published_definition(
    vision: minicpmv.Vision, weights: dict[str, Tensor], recipe: Recipe, least: float, tmp_path: Path
) -> None:
    image = _image(70, 70)
    found = _run(_compiled(tmp_path, weights, ("tower", "resampler"), recipe), image)
    assert found.shape == (16, HIDDEN)
    assert min(map(cosine, found, vision.rows(image).numpy())) >= least


def test_tower_and_resampler_in_two_files(vision: minicpmv.Vision, weights: dict[str, Tensor], tmp_path: Path) -> None:
    image = _image(70, 70)
    encoder = _compiled(tmp_path, weights, ("tower",), EXACT)
    resampler = _compiled(tmp_path, weights, ("resampler",), EXACT)
    assert [node.name for node in encoder.get_inputs()] == ["input"]
    rows = encoder.run(["output"], {"input": image.numpy()[None]})[0]
    np.testing.assert_allclose(rows[0], vision.tower_rows(image).numpy(), atol=2e-5, rtol=1e-4)
    found = resampler.run(["output"], {"input": rows, "pos_embed_ids": position_ids(5, 5)})[0]
    np.testing.assert_allclose(found[0], vision.rows(image).numpy(), atol=2e-5, rtol=1e-4)


def test_a_file_for_slices_accepts_every_size(
    vision: minicpmv.Vision, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    session = _compiled(tmp_path, weights, ("tower", "resampler"), replace(EXACT, image_slices=True))
    sizes = [node.shape[1:3] for group in range(session.num_shape_groups) for node in session.get_inputs(group)[:1]]
    assert sizes == [(70, 70), *slice_sizes(448, 14)]
    for size in ((448, 448), sizes[1], sizes[-1]):
        image = _image(*size)
        found = _run(session, image, sizes.index(size))
        assert min(map(cosine, found, vision.rows(image).numpy())) >= 0.999999


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (20, 20), (27, 31), (70, 4), (1, 1)])
def test_positions_are_interpolated_as_by_torch(rows: int, columns: int) -> None:
    table = np.random.default_rng(0).standard_normal((5, 5, 8)).astype(np.float32)
    channels_first = torch.from_numpy(table).permute(2, 0, 1)[None]
    want = F.interpolate(channels_first, (rows, columns), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    found = interpolated_positions(table, rows, columns)
    np.testing.assert_allclose(found, want.reshape(rows * columns, 8).numpy(), atol=1e-5)
    np.testing.assert_allclose(interpolation(5, rows).sum(1), 1, atol=1e-6)


def test_positions_of_the_grid() -> None:
    assert position_ids(2, 3).tolist() == [0, 1, 2, 70, 71, 72]
    np.testing.assert_allclose(sincos_positions(16, 4, 3), minicpmv.sincos(16, (4, 3)).numpy(), atol=1e-6)


@pytest.mark.parametrize(("size", "advice"), [(281, 280), (13, 14), (994, 994)])
def test_an_image_size_that_patches_do_not_divide_is_refused(size: int, advice: int) -> None:
    with pytest.raises(AxzooError, match=f"image_size {size} is not a multiple of the patch size 14"):
        vision_groups(SPEC, ("tower",), Recipe(image_size=size))


def test_gptq_rounds_only_decoder_layers() -> None:
    recipe = Recipe(rounding="gptq")
    assert kind_of("layer").storage(recipe)["rounding"] == "gptq"
    for kind in map(kind_of, ("vision", "encoder", "resampler")):
        assert kind.storage(recipe)["rounding"] == "nearest"
        assert kind.choices(recipe) == kind.choices(Recipe())
        assert not kind.is_calibrated(recipe)


def test_the_spec_survives_json() -> None:
    spec = DecoderSpec.from_dict(tiny_vision.spec().to_dict())
    assert spec == tiny_vision.spec()
    assert isinstance(spec.vision, VisionSpec)


def test_bf16_outputs_are_the_rounded_fp32_ones(weights: dict[str, Tensor], tmp_path: Path) -> None:
    image = _image(70, 70)
    exact = _run(_compiled(tmp_path, weights, ("tower", "resampler"), EXACT), image)
    rounded = replace(EXACT, hidden_state_type="bf16")
    found = _run(_compiled(tmp_path, weights, ("tower", "resampler"), rounded), image)
    np.testing.assert_array_equal(found, exact.astype(ml_dtypes.bfloat16).astype(np.float32))
