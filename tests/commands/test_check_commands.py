"""`axzoo check-layers` and `check-generation`: the report files of checks that pass and checks that fail."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from axzoo.bundle.completion import complete_bundle
from axzoo.cli import main
from axzoo.commands import report
from axzoo.weights import formats
from axzoo.weights.recipe import Recipe
from tiny_model import Built

MATRIX = """
models:
  tiny: {path: x, model_type: llama, num_hidden_layers: 2, chips: AX650, prefill_len: 8, kv_cache_len: 31}
"""
PROMPT = "What is it?"


@pytest.fixture
def project(s8: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    """A built model in a project whose matrix contains it."""
    (tmp_path / "config").mkdir()
    shutil.copy(Path(__file__).parents[2] / "config/chips.yaml", tmp_path / "config")
    (tmp_path / "config/zoo.yaml").write_text(MATRIX)
    monkeypatch.chdir(tmp_path)
    built = s8.moved(tmp_path / "results/AX650/tiny-w8a16")
    complete_bundle(built.plan)
    return built


def check(verb: str, built: Built, name: str, *more: str) -> int:
    where = ["--lock", str(built.locks), "--source", str(built.source), "--prompt", PROMPT, "--raw"]
    return main([verb, str(built.folder), *where, "--output", f"results/checks/AX650/tiny-w8a16/{name}", *more])


def reports() -> set[str]:
    return {path.name for path in Path("results/checks/AX650/tiny-w8a16").iterdir()}


def reported(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    report.run(argparse.Namespace(matrix=Path("config/zoo.yaml")))
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "name", "failed", "level"),
    [
        ("check-layers", "layers.json", "layers.failed.json", "level 1"),
        ("check-generation", "generation.json", "generation.failed.json", "level 2"),
    ],
)
def test_report_of_a_failed_check_has_another_name(
    project: Built, capsys: pytest.CaptureFixture[str], verb: str, name: str, failed: str, level: str
) -> None:
    assert check(verb, project, name) == 0
    assert reports() == {name}
    assert f"{level}  passed: " in reported(capsys)

    first, second = project.layers
    kept = first.rename(first.with_suffix(".kept"))
    shutil.copy(second, first)
    assert check(verb, project, name) == 1
    assert f"the numbers are in results/checks/AX650/tiny-w8a16/{failed}" in capsys.readouterr().err
    assert reports() == {failed}
    found = json.loads(Path("results/checks/AX650/tiny-w8a16", failed).read_text())
    assert found["passed"] is False
    assert found["failures"]
    assert f"{level}  FAILED: " in reported(capsys)

    kept.replace(first)
    assert check(verb, project, name) == 0
    assert reports() == {name}


STRICT = {"min_layer_cosine": 1, "max_delta_l2": 0, "max_delta_l2_p95": 0, "max_mean_kl": 0, "min_top1_agreement": 1}


@pytest.mark.parametrize(
    ("verb", "name", "limits"),
    [
        ("check-layers", "layers", ["min_layer_cosine", "max_delta_l2", "max_delta_l2_p95"]),
        ("check-generation", "generation", ["max_mean_kl", "min_top1_agreement"]),
    ],
)
def test_the_cost_of_quantization_is_a_warning_unless_the_entry_sets_a_limit(
    project: Built,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    name: str,
    limits: list[str],
) -> None:
    usual = formats.thresholds_of

    def strict_by_default(recipe: Recipe, own: Mapping[str, float] | None = None) -> formats.Thresholds:
        return usual(recipe, {**STRICT, **(own or {})})

    monkeypatch.setattr(formats, "thresholds_of", strict_by_default)
    monkeypatch.setattr("axzoo.check.generation.WRONG_MODEL", math.inf)
    assert check(verb, project, f"{name}.json", "--thresholds", "{}") == 0
    found = json.loads(Path(f"results/checks/AX650/tiny-w8a16/{name}.json").read_text())
    assert len(found["warnings"]) == len(limits)
    assert "the cost of quantization exceeds what is usual for its formats" in capsys.readouterr().err
    assert "WARNING" in reported(capsys)
    for limit in limits:
        own = json.dumps({limit: STRICT[limit]})
        assert check(verb, project, f"{name}.json", "--thresholds", own) == 1
        found = json.loads(Path(f"results/checks/AX650/tiny-w8a16/{name}.failed.json").read_text())
        assert len(found["failures"]) == 1
        assert len(found["warnings"]) == len(limits) - 1
        loose = json.dumps({key: 1000 if key.startswith("max") else 0 for key in STRICT})
        assert check(verb, project, f"{name}.json", "--thresholds", loose) == 0


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cosine": 1}', '{"max_mean_kl": "1"}', '{"max_mean_kl": NaN}'])
def test_thresholds_must_be_numbers_by_name(project: Built, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert check("check-layers", project, "layers.json", "--thresholds", text) == 1
    assert capsys.readouterr().err.count("--thresholds") == 1


def test_nan_fails_the_check_and_is_reported(project: Built, capsys: pytest.CaptureFixture[str]) -> None:
    """The scales of a layer overflow, as can happen in fp16 files with large activations."""
    layer = project.layers[1]
    model = onnx.load(layer)
    for tensor in model.graph.initializer:
        if tensor.name == "down_proj.scale":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32("inf"), tensor.name))
    layer.unlink()
    onnx.save(model, layer)
    with np.errstate(invalid="ignore"):
        assert check("check-layers", project, "layers.json") == 1
        assert check("check-generation", project, "generation.json") == 1
    assert reports() == {"layers.failed.json", "generation.failed.json"}
    output = reported(capsys)
    assert "level 1  FAILED: 2 layers against fp32, worst token's cosine none in layer 1" in output
    assert "mean KL none" in output
