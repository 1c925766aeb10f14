"""The cluster profiles: Snakemake and its plugins accept all keys and plan with them. Also lints the Containerfile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workflow_project import REPOSITORY

pytestmark = pytest.mark.workflow

PROFILES = REPOSITORY / "workflow/profiles"


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_snakemake_plans_with_the_profile(name: str, tmp_path: Path) -> None:
    for folder in ("workflow", "profiles", "config"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    shutil.copy(REPOSITORY / "Snakefile", tmp_path)
    command = [Path(sys.executable).with_name("snakemake"), "demo", "--dry-run", "--workflow-profile"]
    run = subprocess.run(
        [*command, f"workflow/profiles/{name}"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "layer                  4     30" in run.stdout


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_unknown_profile_key_is_refused(name: str, tmp_path: Path) -> None:
    profile = yaml.safe_load((PROFILES / name / "profile.yaml").read_text())
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile | {f"{name}-no-such-key": "x"}))
    command = [Path(sys.executable).with_name("snakemake"), "--dry-run", "--workflow-profile", tmp_path]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert f"{name}-no-such-key" in run.stdout + run.stderr


def test_containerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, "--no-color", REPOSITORY / "envs/Containerfile"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")
