"""The backend of CONTRIBUTING.md next to the host backend: an external program whose files depend on the chip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from workflow_project import ENTRY, LAYERS, Project, Run, new_project, sha256, untraced

import contributing

pytestmark = pytest.mark.workflow

CHIPS = ("AX650", "AX620E")
NAMES = [*(f"llama_p16_l{layer}_together.axmodel" for layer in range(LAYERS)), "llama_post.axmodel"]
EMBEDDING = "model.embed_tokens.weight.bfloat16.bin"
BOTH = {"tiny": ENTRY | {"backend": ["host", "stamp"]}}


@dataclass(frozen=True)
class Stamped:
    """A project, and the environment in which the backend is installed."""

    project: Project
    environment: Mapping[str, str]

    def snakemake(self, *arguments: str, **environment: str) -> Run:
        return self.project.snakemake(*arguments, **self.environment, **environment)

    def axzoo(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """The output of a command, whose exit status must be `status`."""
        done = subprocess.run(
            [Path(sys.executable).with_name("axzoo"), *arguments],
            cwd=self.project.folder,
            env=untraced() | self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PYTHONPATH with the example's package, installed with pip."""
    folder = tmp_path_factory.mktemp("backend")
    contributing.apply("Add a backend", folder)
    contributing.install(folder / "axzoo-stamp", folder / "site")
    return {"PYTHONPATH": os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


@pytest.fixture(scope="session")
def both_built(environment: dict[str, str], small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Stamped:
    """A model built with two backends for two chips; read-only."""
    stamped = Stamped(new_project(tmp_path_factory.mktemp("stamped") / "project", small_llama), environment)
    stamped.project.write_matrix(BOTH, chips=["AX650", "AX630C"])
    run = stamped.snakemake()
    assert run.status == 0, run.shown
    assert run.jobs["layer"] == 4 * LAYERS
    assert run.jobs["check_layers"] == run.jobs["check_generation"] == 2, "only bundles of the host backend"
    return stamped


@pytest.fixture
def stamped(both_built: Stamped, tmp_path: Path) -> Stamped:
    """A copy that tests can change."""
    copy = Stamped(both_built.project.copy_to(tmp_path / "project"), both_built.environment)
    assert copy.snakemake(*_manifests()).status == 0
    return copy


def _bundle(chip: str, backend: str = "stamp") -> str:
    return f"results/{chip}/tiny-w8a16" + ("" if backend == "host" else f"-{backend}")


def _manifests() -> list[str]:
    return [f"{_bundle(chip, backend)}/manifest.json" for chip in CHIPS for backend in ("host", "stamp")]


def test_each_chip_has_its_own_files(both_built: Stamped) -> None:
    project, digests = both_built.project, set()
    for chip in CHIPS:
        for name in NAMES:
            lines = (project / f"{_bundle(chip)}/{name}").read_text().splitlines()
            assert lines[0].split()[:2] == ["STAMP", chip]
            digests.add((chip, lines[1]))
    assert len(digests) == len(CHIPS) * len(NAMES), "a part has another part's weights"


def test_the_host_backend_is_not_affected(both_built: Stamped, built: Project) -> None:
    for chip in CHIPS:
        for name in (*NAMES, EMBEDDING):
            path = f"{_bundle(chip, 'host')}/{name}"
            assert sha256(both_built.project / path) == sha256(built / path)


def test_files_that_axzoo_writes_are_shared_by_all_backends(both_built: Stamped) -> None:
    files = [both_built.project / f"{Path(manifest).parent}/{EMBEDDING}" for manifest in _manifests()]
    assert len({file.stat().st_ino for file in files}) == 1


def test_manifests_and_receipts_record_the_backend(both_built: Stamped) -> None:
    for chip in CHIPS:
        manifest = json.loads((both_built.project / f"{_bundle(chip)}/manifest.json").read_text())
        assert (manifest["model"], manifest["chip"], manifest["backend"]) == ("tiny", chip, "stamp")
        assert manifest["parts"]["llama_post.axmodel"]["options"][0] == "--cores"
        assert "files, " in both_built.axzoo("verify", _bundle(chip))


def test_a_second_run_has_nothing_to_do(both_built: Stamped) -> None:
    assert both_built.snakemake().did_nothing
    assert both_built.axzoo("why") == "nothing to do: everything is up to date\n"


def test_changed_environment_rebuilds_only_this_backend(stamped: Stamped) -> None:
    """The backend's identity includes STAMP_SEED."""
    before = stamped.project.digests("results")
    output = stamped.axzoo("why", *_manifests(), STAMP_SEED="1")
    assert output.count("\nlayer") + output.startswith("layer") == 2 * LAYERS
    assert "tiny-w8a16/" not in output
    run = stamped.snakemake(*_manifests(), STAMP_SEED="1")
    assert run.jobs == {"layer": 2 * LAYERS, "post": 2, "bundle": 2}
    after = stamped.project.digests("results")
    changed = {name for name, digest in before.items() if name.endswith(".axmodel") and after[name] != digest}
    assert changed == {f"{_bundle(chip).removeprefix('results/')}/{name}" for chip in CHIPS for name in NAMES}


def test_deleted_bundle_is_linked_from_the_store(stamped: Stamped) -> None:
    """STAMP_CRASH makes the external program fail, so nothing is compiled."""
    bundle = stamped.project / _bundle("AX620E")
    before = stamped.project.digests(_bundle("AX620E"))
    for name in NAMES:
        (bundle / name).unlink()
    run = stamped.snakemake(*(f"{_bundle('AX620E')}/{name}" for name in NAMES), STAMP_CRASH="1")
    assert run.status == 0, run.shown
    assert stamped.project.digests(_bundle("AX620E")) == before


def test_calibrated_parts_with_this_backend(both_built: Stamped, project: Project) -> None:
    """axzoo calibrates and rounds for every backend; only the layers depend on it."""
    stamped = Stamped(project, both_built.environment)
    (project / "text.txt").write_text("What is the capital of France? The capital of France is Paris. " * 40)
    gptq = {"rounding": "gptq", "calibration_text": "text.txt", "calibration_tokens": 256}
    project.write_matrix({"tiny": ENTRY | {"backend": ["stamp"]} | gptq})
    run = stamped.snakemake()
    assert run.status == 0, run.shown
    assert (run.jobs["calibrate"], run.jobs["layer"], run.jobs["post"]) == (1, LAYERS, 1)
    bundle = project / "results/AX650/tiny-w8a16-gptq-stamp"
    parts = json.loads((bundle / "manifest.json").read_text())["parts"]
    assert [parts[name]["calibration"]["tokens"] for name in NAMES[:-1]] == [256] * LAYERS
    assert "calibration" not in parts[NAMES[-1]]
    assert stamped.snakemake().did_nothing


def test_parts_that_share_a_job_are_the_same_files(both_built: Stamped, project: Project) -> None:
    stamped = Stamped(project, both_built.environment)
    project.write_matrix({"tiny": ENTRY | {"backend": ["stamp"]}}, chips=["AX650", "AX630C"])
    run = stamped.snakemake("--config", f"layers_per_job={LAYERS}")
    assert run.status == 0, run.shown
    assert run.jobs[f"layers_0_{LAYERS - 1}"] == len(CHIPS)
    for chip in CHIPS:
        for name in NAMES:
            path = f"{_bundle(chip)}/{name}"
            assert sha256(project / path) == sha256(both_built.project / path)


def test_file_for_another_chip_is_detected(stamped: Stamped) -> None:
    """Its digest matches the manifest, but its header names the other chip."""
    wrong, name = stamped.project / _bundle("AX620E"), "llama_post.axmodel"
    content = (stamped.project / f"{_bundle('AX650')}/{name}").read_bytes()
    (wrong / name).unlink()
    (wrong / name).write_bytes(content)
    manifest = json.loads((wrong / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": sha256(wrong / name)}
    (wrong / "manifest.json").write_text(json.dumps(manifest))
    output = stamped.axzoo("verify", _bundle("AX620E"), status=1)
    assert "llama_post.axmodel is not a file of backend stamp for AX620E" in output


def test_failing_tool_is_reported_and_leaves_no_files(environment: dict[str, str], project: Project) -> None:
    stamped = Stamped(project, environment)
    project.write_matrix({"tiny": ENTRY | {"backend": ["stamp"]}})
    run = stamped.snakemake(STAMP_CRASH="1")
    assert run.status != 0
    assert "stamp could not compile" in run.shown and "out of licenses" in run.shown
    assert not [name for name in project.files() if name.endswith(".axmodel")]
    assert [path.name for path in (project / "results/store").glob(".*")] in ([], [".lock"])
    assert stamped.snakemake().status == 0


def test_refusal_is_reported_at_plan_time(environment: dict[str, str], project: Project) -> None:
    stamped = Stamped(project, environment)
    project.write_matrix({"tiny": ENTRY | {"backend": ["stamp"], "hidden_state_type": "fp32"}})
    run = stamped.snakemake("-n")
    assert run.status != 0
    assert "config/zoo.yaml" in run.shown
    assert "backend stamp cannot build this model for AX650: hidden_state_type fp32 is not supported" in run.shown


def test_backend_that_is_not_installed(project: Project) -> None:
    project.write_matrix({"tiny": ENTRY | {"backend": ["stamp"]}})
    run = project.snakemake("-n")
    assert run.status != 0
    assert "unknown backend 'stamp'; known backends: host" in run.shown


def test_files_for_boards_are_not_run_here(both_built: Stamped) -> None:
    bundle = _bundle("AX650")
    report = both_built.axzoo("report", "config/zoo.yaml")
    assert report.count("not compared: files of backend stamp run only on a board") == len(CHIPS)
    assert report.count("passed: ") == 2 * len(CHIPS)
    for command in (["run", bundle, "--prompt", "1+1="], ["serve", bundle]):
        assert "compiled by backend stamp, whose files run only on a board" in both_built.axzoo(*command, status=1)
    source = ["--lock", "results/locks/tiny", "--source", "results/checkpoints/tiny/source.json"]
    for command in ("check-layers", "check-generation"):
        output = both_built.axzoo(command, bundle, *source, "--prompt", "1+1=", "--output", "x.json", status=1)
        assert "whose files run only on a board" in output
    output = both_built.axzoo("inspect", f"{bundle}/llama_post.axmodel", status=1)
    assert "compiled by backend stamp: inspect reads only ONNX files" in output


def test_llm_build_with_a_backend(environment: dict[str, str], project: Project) -> None:
    stamped = Stamped(project, environment)
    options = ["--input_path", "checkpoint", "--output_path", "out", "--backend", "stamp", "--chip", "AX620E"]
    output = stamped.axzoo("llm_build", *options, "--check_level", "1", status=1)
    assert "those of backend stamp run only on a board: omit --check_level" in output
    assert not (project / "out").exists()
    stamped.axzoo("llm_build", *options)
    (post,) = (project / "out").glob("*_post.axmodel")
    assert post.read_text().startswith("STAMP AX620E 1\n")
    assert json.loads((project / "out/manifest.json").read_text())["backend"] == "stamp"
