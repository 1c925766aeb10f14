"""The files that the Snakemake workflow catalog requires."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_required_files_exist() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["software-stack-deployment"]) == {"conda", "apptainer", "apptainer+conda"}
    assert (ROOT / "config/README.md").is_file()
    assert {"snakemake", "workflow"} <= set(re.findall(r"\w+", (ROOT / "README.md").read_text().lower()))


@pytest.mark.workflow
def test_snakefile_plans_a_matrix() -> None:
    command = [Path(sys.executable).with_name("snakemake"), "--dry-run", "--forceall", "--cores", "1", "--nolock"]
    command += ["--configfile", "config/demo.yaml", "--snakefile", "workflow/Snakefile"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)(?: +\d+)?$", run.stdout + run.stderr, re.MULTILINE))
    assert {"zoo": "1", "lock": "1", "bundle": "1"}.items() <= jobs.items()
