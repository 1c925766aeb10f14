"""The check of vision models: a sound build passes, planted faults are found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import tiny_vision
from axzoo.check.vision_blocks import generated_picture
from axzoo.cli import main
from axzoo.core.files import read_json
from axzoo.weights.recipe import EmbeddingScale
from published.minicpmv import Vision
from vision_bundle import EXACT, make_bundle

S8 = replace(EXACT, weight_type="s8", post_weight_type="s8", hidden_state_type="bf16")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vision]:
    return tiny_vision.make_checkpoint(tmp_path_factory.mktemp("vision") / "checkpoint")


@pytest.fixture(scope="module", params=["s8", "bf16", "two files"])
def built(
    request: pytest.FixtureRequest, checkpoint: tuple[Path, Vision], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    recipe = S8
    if request.param == "bf16":
        recipe = replace(recipe, weight_type="bf16")
    if request.param == "two files":
        recipe = replace(recipe, vpm_two_stage=True)
    root = tmp_path_factory.mktemp("built")
    make_bundle(checkpoint[0], root, recipe)
    return root


def _check(root: Path, folder: Path | None = None) -> int:
    words = ["--lock", str(root / "locks"), "--source", str(root / "source.json")]
    return main(["check-vision", str(folder or root / "bundle"), *words, "--output", str(root / "vision.json")])


def test_a_sound_build_passes(built: Path) -> None:
    assert _check(built) == 0
    report = read_json(built / "vision.json")
    assert report["passed"]
    assert [block["name"] for block in report["blocks"]] == [
        "patches", "block 0", "block 1", "block 2", "tower", "resampler", "rows",
    ]  # fmt: skip
    assert min(block["cosine"] for block in report["blocks"]) > 0.999


def test_a_picture_of_the_user_is_checked(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(generated_picture(100, 130)).save(path)
    words = ["--lock", str(built / "locks"), "--source", str(built / "source.json"), "--image", str(path)]
    assert _check(built) == 0
    usual = read_json(built / "vision.json")["blocks"]
    assert main(["check-vision", str(built / "bundle"), *words, "--output", str(tmp_path / "report.json")]) == 0
    report = read_json(tmp_path / "report.json")
    assert report["passed"]
    assert report["blocks"] != usual


def test_the_generated_picture_has_the_spectrum_of_photographs() -> None:
    """The power falls with about the square of the frequency, and nearly all pixels are between black and white."""
    grey = generated_picture(280, 280).astype(float).mean(-1)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(280)[:, None], np.fft.fftfreq(280))
    bands = [power[(frequency >= low) & (frequency < 2 * low)].mean() for low in (0.02, 0.04, 0.08, 0.16)]
    slopes = np.diff(np.log2(bands))
    assert all(-3.5 < slope < -1 for slope in slopes), slopes
    assert ((grey > 5) & (grey < 250)).mean() > 0.95


def _change(model: onnx.ModelProto, name: str, change: object) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = onnx.numpy_helper.to_array(tensor).copy()
            tensor.raw_data = change(array).tobytes()  # type: ignore[operator]
            return
    raise AssertionError(f"no {name}")


FAULTS = {
    "a block's bias dropped": ("blocks.1.up.bias", lambda a: a * 0, "block 1"),
    "a scale off": ("blocks.2.v.scale", lambda a: a * np.linspace(0.2, 3, a.size, dtype=a.dtype), "block 2"),
    "positions shuffled": ("positions", lambda a: a[::-1].copy(), "patches"),
    "a norm zeroed": ("norm.weight", lambda a: a * 0 + 1, "tower"),
    "the queries' positions dropped": ("query.positions", lambda a: a * 0, "resampler"),
    "NaN in a weight": ("blocks.0.down.bias", lambda a: a * np.nan, "block 0"),
}


@pytest.mark.parametrize(("name", "change", "where"), FAULTS.values(), ids=list(FAULTS))
def test_planted_faults_are_found(
    name: str, change: object, where: str, checkpoint: tuple[Path, Vision], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_bundle(checkpoint[0], tmp_path, S8)
    path = tmp_path / "bundle" / "vpm_resampler.axmodel"
    model = onnx.load(path)
    _change(model, name, change)
    path.unlink()
    path.write_bytes(model.SerializeToString(deterministic=True))
    assert _check(tmp_path) == 1
    assert f"vision {where}: it needs cosine >= " in capsys.readouterr().err
    report = read_json(tmp_path / "vision.failed.json")
    assert not report["passed"]
    assert any(failure.startswith(f"vision {where}:") for failure in report["failures"])


def test_a_bundle_without_vision_has_nothing_to_check(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(built / "bundle", folder)
    config = (folder / "config.json").read_text().replace('"filename_vpm_resampler_axmodel"', '"unused"')
    (folder / "config.json").write_text(config)
    assert _check(built, folder) == 1
    assert "has no vision model" in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["host", "graph"])
def test_levels_1_and_2_pass_whoever_scales_the_embedding(
    scale: EmbeddingScale, checkpoint: tuple[Path, Vision], tmp_path: Path
) -> None:
    make_bundle(checkpoint[0], tmp_path, replace(S8, embedding_scale=scale))
    words = [str(tmp_path / "bundle"), "--lock", str(tmp_path / "locks"), "--source", str(tmp_path / "source.json")]
    prompt = ["--prompt", "What is the capital of France?", "--raw", "--output", str(tmp_path / "report.json")]
    assert main(["check-layers", *words, *prompt]) == 0
    assert read_json(tmp_path / "report.json")["passed"]
    assert main(["check-generation", *words, *prompt, "--max_tokens", "8"]) == 0
    assert read_json(tmp_path / "report.json")["mean_kl"] < 0.05
