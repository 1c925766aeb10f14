"""`axzoo why` lists what the next build then does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from workflow_project import ENTRY, LAYERS, Project

pytestmark = pytest.mark.workflow

BUNDLE = "results/AX650/tiny-w8a16"
MANIFEST = f"{BUNDLE}/manifest.json"


def why(project: Project, *arguments: str) -> str:
    axzoo = Path(sys.executable).with_name("axzoo")
    before = project.state()
    done = subprocess.run([axzoo, "why", *arguments], cwd=project.folder, capture_output=True, text=True, check=True)
    assert project.state() == before
    return done.stdout


@pytest.fixture
def made(built: Project, tmp_path: Path) -> Project:
    """A copy of a finished build, with the checkpoint fetched again from the copy."""
    project = built.copy_to(tmp_path / "made")
    assert project.snakemake(MANIFEST).status == 0
    return project


def test_of_what_is_finished_nothing(made: Project) -> None:
    assert why(made, MANIFEST) == "nothing to do: everything is up to date\n"


def test_a_changed_layer(made: Project) -> None:
    made.edit_tensors(lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(1.5))
    output = why(made, MANIFEST, "--hash").splitlines()
    assert output[:2] == ["fetch: results/checkpoints/tiny/source.json", "    changed: checkpoint/model.safetensors"]
    assert "    only if the lock, which runs first, finds that its tensors changed" in output
    assert output[-1] == "tiny: layer_1: model.layers.1.mlp.up_proj.weight changed"
    assert made.snakemake(MANIFEST).jobs == {"fetch": 1, "lock": 1, "layer": 1, "bundle": 1}
    assert why(made, MANIFEST).startswith("nothing")


def test_changed_recipe_and_deleted_file(made: Project) -> None:
    (made / f"{BUNDLE}/llama_post.axmodel").unlink()
    made.write_matrix({"tiny": ENTRY}, kv_cache_len=62, chips=["AX650", "AX630C"])
    output = why(made, MANIFEST, f"{BUNDLE}/llama_post.axmodel")
    assert output.count("its arguments changed: kv_cache_len 63 -> 62") == LAYERS
    assert f"post: {BUNDLE}/llama_post.axmodel\n    missing: {BUNDLE}/llama_post.axmodel" in output
    assert "embed:" not in output
    jobs = made.snakemake(MANIFEST, f"{BUNDLE}/llama_post.axmodel").jobs
    assert jobs == {"layer": LAYERS, "post": 1, "bundle": 1}


def test_failed_plan_is_reported(made: Project) -> None:
    axzoo = Path(sys.executable).with_name("axzoo")
    done = subprocess.run([axzoo, "why", "results/AX650/no/x"], cwd=made.folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert "axzoo: snakemake cannot plan this build:\nMissingRuleException" in done.stderr
    assert "Building DAG" not in done.stderr
    (made / "config/zoo.yaml").write_text("models: {tiny: {path: nowhere}}\n")
    done = subprocess.run([axzoo, "why"], cwd=made.folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert "axzoo: snakemake cannot plan this build:\nconfig/zoo.yaml:1: missing key 'model_type'" in done.stderr
