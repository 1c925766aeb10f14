"""Builds layers rounded with GPTQ from a checkpoint and a text, through the store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.calibrate.states import calibrate
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.runtime.engine import InferenceSession
from axzoo.weights.recipe import Recipe
from tiny_model import Built

RECIPE = Recipe(weight_type="s4", rounding="gptq", scale_rule="mse", prefill_len=8, kv_cache_len=31)
TEXT = "".join(f"Line {number} says {number * number} things. " for number in range(200))


@pytest.fixture(scope="module")
def calibrated(exact: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "text.txt").write_text(TEXT)
    calibrate(exact.locks, exact.source, folder / "states", folder / "text.txt", 1100)
    return folder / "states"


@pytest.fixture
def states(calibrated: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(calibrated, tmp_path / "states"))


def _file(built: Built, root: Path, name: str = "layer.axmodel") -> PartFile:
    return PartFile(built.locks / "layer_0.json", root / name, root / f"{name}.json")


def _build(built: Built, file: PartFile, recipe: Recipe, calibration: Path | None = None) -> None:
    store = file.output.parent / "store"
    build_parts(PartJob([file], built.source, store, recipe, "host", "AX650", calibration))


def test_only_whole_sequences_are_used(calibrated: Path) -> None:
    index = read_json(calibrated / "index.json")
    assert [len(row) for row in index["tokens"]] == [256] * 4
    assert index["origin"]["tokens"] == 1024
    assert len(index["origin"]["text"]) == 64
    assert sorted(index["layers"]) == sorted(path.name for path in calibrated.glob("*.safetensors"))


def test_the_file_is_an_s4_file_and_records_its_calibration(exact: Built, states: Path, tmp_path: Path) -> None:
    job = _file(exact, tmp_path)
    _build(exact, job, RECIPE, states)
    plain = _file(exact, tmp_path, "plain.axmodel")
    _build(exact, plain, replace(RECIPE, rounding="nearest"))
    assert abs(job.output.stat().st_size - plain.output.stat().st_size) < 200
    assert read_json(job.receipt)["key"] != read_json(plain.receipt)["key"]
    assert read_json(job.receipt)["about"]["calibration"]["tokens"] == 1024
    assert "calibration" not in read_json(plain.receipt)["about"]
    InferenceSession(job.output)


def test_equal_calibration_is_built_once(exact: Built, states: Path, tmp_path: Path) -> None:
    """A layer found in the store does not need the hidden states."""
    first, second = _file(exact, tmp_path), _file(exact, tmp_path, "second.axmodel")
    _build(exact, first, RECIPE, states)
    (states / "layer_0.safetensors").unlink()
    _build(exact, second, RECIPE, states)
    assert first.output.samefile(second.output)


def test_another_calibration_gives_another_layer(exact: Built, states: Path, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text(TEXT[::-1])
    calibrate(exact.locks, exact.source, tmp_path / "other", text, 256)
    jobs = [_file(exact, tmp_path, name) for name in ("a", "b")]
    for job, folder in zip(jobs, (states, tmp_path / "other"), strict=True):
        _build(exact, job, RECIPE, folder)
    assert jobs[0].output.read_bytes() != jobs[1].output.read_bytes()


def test_errors_name_the_cause_and_leave_no_files(exact: Built, states: Path, tmp_path: Path) -> None:
    job, path = _file(exact, tmp_path), states / "layer_0.safetensors"
    with pytest.raises(AxzooError, match="rounding gptq needs --calibration"):
        _build(exact, job, RECIPE)
    with pytest.raises(AxzooError, match="rounding nearest does not use --calibration"):
        _build(exact, job, replace(RECIPE, rounding="nearest"), states)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(AxzooError, match=r"layer_0.safetensors was changed after it was written: remove .*index.json"):
        _build(exact, job, RECIPE, states)
    path.unlink()
    with pytest.raises(AxzooError, match=r"layer_0.safetensors is missing"):
        _build(exact, job, RECIPE, states)
    (states / "index.json").unlink()
    with pytest.raises(AxzooError, match=r"index.json is missing"):
        _build(exact, job, RECIPE, states)
    assert not job.output.exists()
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_too_few_tokens_are_refused(exact: Built, tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="fewer than one sequence"):
        calibrate(exact.locks, exact.source, tmp_path / "states", None, 255)
    assert not (tmp_path / "states").exists()


def test_calibration_with_generated_text(exact: Built, tmp_path: Path) -> None:
    for name in ("a", "b"):
        calibrate(exact.locks, exact.source, tmp_path / name, None, 256)
        index = read_json(tmp_path / name / "index.json")
        assert index["origin"] == {"tokens": 256, "length": 256, "seed": 0}
        assert np.shape(index["tokens"]) == (1, 256)
    a, b = (read_json(tmp_path / name / "index.json") for name in ("a", "b"))
    assert {**a, "files": sorted(a["files"])} == {
        **b,
        "files": sorted(b["files"]),
    }  # not their times
