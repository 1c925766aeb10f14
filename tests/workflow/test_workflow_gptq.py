"""GPTQ builds: calibration runs once, and again when the text changes."""

from __future__ import annotations

import pytest
from workflow_project import ENTRY, LAYERS, Project

pytestmark = pytest.mark.workflow

GPTQ = {"weight_type": "s4", "rounding": "gptq", "calibration_text": "text.txt", "calibration_tokens": 512}
BUNDLE = "results/AX650/tiny-w4a16-gptq"


def test_calibration_is_a_separate_job(project: Project) -> None:
    text = project / "text.txt"
    text.write_text("What is the capital of France? " * 200)
    project.write_matrix({"tiny": ENTRY | GPTQ})
    run = project.snakemake(f"{BUNDLE}/manifest.json")
    assert run.status == 0, run.shown
    assert run.jobs == {"fetch": 1, "lock": 1, "calibrate": 1, "layer": LAYERS, "post": 1, "embed": 1, "bundle": 1}
    assert project.snakemake(f"{BUNDLE}/manifest.json").did_nothing
    before = project.digests(BUNDLE)

    project.write_matrix({"tiny": ENTRY | GPTQ}, scale_rule="mse")
    run = project.snakemake(f"{BUNDLE.replace('gptq', 'mse-gptq')}/manifest.json")
    assert run.jobs == {"layer": LAYERS, "post": 1, "embed": 1, "bundle": 1}

    text.write_text("The capital of France is Paris. " * 200)
    project.write_matrix({"tiny": ENTRY | GPTQ})
    run = project.snakemake(f"{BUNDLE}/manifest.json")
    assert run.jobs == {"calibrate": 1, "layer": LAYERS, "bundle": 1}
    after = project.digests(BUNDLE)
    layers = {name for name in before if "_l" in name and name.endswith(".axmodel")}
    assert {name for name in before if name.endswith(".axmodel") and before[name] != after[name]} == layers


def test_an_unusable_text_is_reported(project: Project) -> None:
    (project / "text.txt").write_text("short")
    project.write_matrix({"tiny": ENTRY | GPTQ})
    run = project.snakemake(f"{BUNDLE}/manifest.json")
    assert run.status == 1
    assert "text.txt has" in run.shown and "calibration_tokens needs 512" in run.shown
    assert not (project / "results/calibration/tiny/index.json").exists()
