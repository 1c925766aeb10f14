"""Dry runs of the repository's matrices plan all jobs without network access."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from workflow_project import REPOSITORY, Project

from axzoo.matrix.entries import load_zoo

pytestmark = pytest.mark.workflow

NO_NETWORK = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT", "PIP_INDEX_URL"), "http://127.0.0.1:9"
)


@pytest.fixture
def clone(tmp_path: Path) -> Project:
    """The workflow files of a fresh clone."""
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    shutil.copy(REPOSITORY / "Snakefile", tmp_path)
    return Project(tmp_path)


def expected_parts(clone: Project, matrix: str) -> dict[str, int]:
    """The number of parts by stage, for builds that fit their chip."""
    builds = load_zoo(clone / matrix, clone / "config/chips.yaml").builds()
    models = len({build.model for build in builds})
    layers = sum(build.num_hidden_layers for build in builds)
    each = dict.fromkeys(("post", "embed", "bundle", "check_layers", "check_generation"), len(builds))
    seeing = sum(build.model_type == "minicpmv" for build in builds)
    vision = {"vision": seeing, "check_vision": seeing} if seeing else {}
    return {"fetch": models, "lock": models, "layer": layers, **each, **vision}


def planned_parts(shown: str) -> dict[str, int]:
    """The number of parts by stage that the planned jobs build."""
    table = re.findall(r"^(\w+) +\d+ +(\d+)$", shown, re.MULTILINE)
    return {stage: int(parts) for stage, parts in table if stage not in ("all", "demo")}


@pytest.mark.parametrize(
    ("matrix", "arguments"),
    [("zoo.yaml", []), ("demo.yaml", ["demo"]), ("demo.yaml", ["--configfile", "config/demo.yaml"])],
)
def test_every_job_is_planned(clone: Project, matrix: str, arguments: list[str]) -> None:
    run = clone.snakemake("-n", *arguments, **NO_NETWORK)
    assert run.status == 0, run.shown
    assert planned_parts(run.shown) == expected_parts(clone, f"config/{matrix}")
    left_out = len(load_zoo(clone / f"config/{matrix}", clone / "config/chips.yaml").left_out())
    assert re.findall("left out: ([0-9]+) of", run.shown) == ([str(left_out)] if left_out else [])
    assert not (clone / "results").exists()


def test_a_plan_says_how_fast_its_builds_will_be(clone: Project) -> None:
    shown = clone.snakemake("-n", "demo", **NO_NETWORK).shown
    line = (
        "forecast: SmolLM2-135M-Instruct-Q4_1-w8a16 on AX650: about 64.8 tok/s (58 to 72.3), 68.9 ms to the first token"
    )
    assert shown.count(line) == 1


def test_single_file_needs_only_its_jobs(clone: Project) -> None:
    file = "results/AX650/Llama-3.2-3B-Instruct-w8a16/llama_p128_l7_together.axmodel"
    assert planned_parts(clone.snakemake("-n", file, **NO_NETWORK).shown) == {"fetch": 1, "lock": 1, "layer": 1}


def test_batch_size_depends_on_sizes_or_config(clone: Project) -> None:
    file = "results/AX620E/SmolLM2-135M-Instruct-w8a16/llama_p128_l7_together.axmodel"
    for config, layers in [([], 15), (["--config", "layers_per_job=8"], 8), (["--config", "layers_per_job=1"], 1)]:
        shown = clone.snakemake("-n", file, *config, **NO_NETWORK).shown
        assert re.search(rf"^layer +1 +{layers}$", shown, re.MULTILINE), shown
        assert planned_parts(shown) == {"fetch": 1, "lock": 1, "layer": layers}


@pytest.mark.parametrize("folder", ["SmolLM2-135M-Instruct-w4a16", "SmolLM3-w8a16"])
def test_bundle_outside_the_matrix_is_refused(clone: Project, folder: str) -> None:
    run = clone.snakemake("-n", f"results/AX650/{folder}/manifest.json")
    assert run.status == 1
    assert re.search(f"results/AX650/{folder}(/manifest.json| is not a build of the matrix)", run.shown)
