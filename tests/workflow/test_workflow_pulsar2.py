"""Builds with the simulated compiler behind Snakemake: what is compiled again, and builds that are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from test_workflow_slurm import PROFILE, cluster, comments
from workflow_project import ENTRY, LAYERS, REPOSITORY, Project, Run, new_project, sha256, untraced

from axzoo.cli import main
from pulsar2_jobs import calls, processes_with, simulator, value_of, wait_until_none

__all__ = ["cluster"]

pytestmark = pytest.mark.workflow

BUNDLES = {chip: f"results/{chip}/tiny-w8a16-pulsar2" for chip in ("AX650", "AX620E")}
MANIFEST = f"{BUNDLES['AX650']}/manifest.json"
SIMULATED = ENTRY | {"backend": ["pulsar2"], "compiler": simulator()}


def tables(bundle: Path) -> dict[str, bytes]:
    """The weights (npu_params) in each file of a bundle. Programs differ from run to run, as the vendor's do."""
    found = {}
    for path in sorted(bundle.glob("*.axmodel")):
        (table,) = [t.raw_data for t in onnx.load(path).graph.initializer if t.name == "npu_params"]
        found[path.name] = table
    return found


@pytest.fixture(scope="module")
def both_chips(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A model built for two chips; read-only."""
    project = new_project(tmp_path_factory.mktemp("pulsar2") / "project", small_llama)
    project.write_matrix({"tiny": SIMULATED}, chips=["AX650", "AX630C"])
    run = project.snakemake(SIMULATOR_CALLS=str(project / "calls"))
    assert run.status == 0, run.shown
    assert run.jobs["layer"] == 2 * LAYERS
    assert run.jobs["post"] == 2
    assert run.jobs["check_weights"] == 2
    assert [name for name in run.jobs if name.startswith("check")] == ["check_weights"], "the files run only on a board"
    return project


def build(project: Project, *arguments: str, **environment: str) -> tuple[Run, list[dict[str, Any]]]:
    """Runs Snakemake. Returns also the calls of the compiler."""
    file = project / "new_calls"
    file.unlink(missing_ok=True)
    run = project.snakemake(*arguments, SIMULATOR_CALLS=str(file), **environment)
    return run, calls(file)


def test_each_chip_has_its_own_files(both_chips: Project, capsys: pytest.CaptureFixture[str]) -> None:
    by_chip = [value_of(call, "--chip") for call in calls(both_chips / "calls")]
    assert sorted(by_chip) == ["AX620E"] * (LAYERS + 1) + ["AX650"] * (LAYERS + 1)
    inodes = [path.stat().st_ino for name in BUNDLES.values() for path in (both_chips / name).glob("*.axmodel")]
    assert len(set(inodes)) == len(inodes) == 2 * (LAYERS + 1)
    for chip, bundle in BUNDLES.items():
        manifest = json.loads((both_chips / f"{bundle}/manifest.json").read_text())
        assert (manifest["backend"], manifest["chip"]) == ("pulsar2", chip)
        for part in manifest["parts"].values():
            if part["kind"] != "embed":
                assert part["compiler"] == {"tool": "llm_build", "version": "7.0 (0123abcd)", "environment": {}}
                assert part["options"][:2] == ["--chip", chip]
        assert main(["verify", str(both_chips / bundle)]) == 0
    assert "all match the manifest" in capsys.readouterr().out


def test_one_changed_layer_is_one_call(both_chips: Project, tmp_path: Path) -> None:
    project = both_chips.copy_to(tmp_path / "project")
    assert build(project, MANIFEST)[1] == []
    before = tables(project / BUNDLES["AX650"])
    project.edit_tensors(lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(2))
    run, called = build(project, MANIFEST)
    assert run.status == 0, run.shown
    assert len(called) == run.jobs["layer"] == 1
    after = tables(project / BUNDLES["AX650"])
    assert {name for name, table in before.items() if after[name] != table} == {"llama_p16_l1_together.axmodel"}
    run, called = build(project, MANIFEST, SIMULATOR_VERSION="5.2")
    assert run.status == 0, run.shown
    assert len(called) == LAYERS + 1, "another version compiles everything again"
    parts = json.loads((project / MANIFEST).read_text())["parts"].values()
    assert {part["compiler"]["version"] for part in parts if part["kind"] != "embed"} == {"5.2 (0123abcd)"}
    run, called = build(project, MANIFEST)
    assert (run.status, called) == (0, []), "the files of 7.0 are still in the store"


def test_a_version_that_changes_during_a_build_is_refused(project: Project) -> None:
    """The plan asked one version; the jobs find another, as on a cluster whose nodes differ."""
    project.write_matrix({"tiny": SIMULATED | {"compiler": simulator(version="9.9")}})
    run, called = build(project, MANIFEST)
    assert run.status != 0
    assert "has version '7.0 (0123abcd)' on this machine, but the build was planned with '9.9'" in run.shown
    assert called == []
    assert not list((project / "results").rglob("*.axmodel"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"compiler": None}, "backend pulsar2 needs a compiler: give `compiler` in the matrix"),
        ({"compiler": {"dokcer": "x"}}, "compiler: unknown key 'dokcer'"),
        ({"backend": ["host"]}, "compiler is for backend pulsar2, not host"),
        ({"weight_group_size": 32}, "weight_group_size 32: the compiler chooses scales and codes itself"),
    ],
)
def test_a_plan_refuses(change: dict[str, Any], message: str, project: Project) -> None:
    project.write_matrix({"tiny": SIMULATED | change})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        patch.delenv("AXZOO_COMPILER", raising=False)
        from axzoo.core.errors import AxzooError
        from axzoo.matrix.plan import make_plan

        with pytest.raises(AxzooError) as error:
            make_plan(["config/zoo.yaml"], "config/demo.yaml")
        assert message in str(error.value)
        assert str(error.value).startswith("config/zoo.yaml:")


def kill_everything(project: Project, arguments: list[str], rng: random.Random) -> int:
    """Starts a build, and kills it with all of its jobs at a random moment while the compiler runs, but not the
    compiler itself. Returns how many calls there were; 0 if the build ended before."""
    log = project / "killed_calls"
    before, wanted = len(calls(log)), rng.choice([1, 1, 2, 3])
    started = subprocess.Popen(
        ["snakemake", "--cores", "2", *arguments],
        cwd=project.folder,
        env=untraced() | {"SIMULATOR_CALLS": str(log), "SIMULATOR_SECONDS": "0.3"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    while len(calls(log)) < before + wanted:
        if started.poll() is not None:
            return 0
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 1))
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    return len(calls(log)) - before


def resume_after_kills(
    project: Project, reference: Mapping[str, bytes], bundle: str, moments: int, arguments: list[str]
) -> None:
    """Kills a build at random moments, resumes it each time, and compares the weights at the end."""
    rng, killed = random.Random(moments), 0
    while killed < moments:
        during = kill_everything(project, arguments, rng)
        print(f"killed after {during} calls")
        killed += during > 0
        wait_until_none(str(project / "results/store"))
        if not during:  # everything is built
            shutil.rmtree(project / "results/store")
            shutil.rmtree(project / bundle)
    run = project.snakemake(*arguments)
    assert run.status == 0, run.shown
    assert tables(project / bundle) == reference
    assert project.snakemake(*arguments).did_nothing


def test_killed_builds_end_with_the_same_weights(both_chips: Project, project: Project) -> None:
    project.write_matrix({"tiny": SIMULATED})
    bundle = BUNDLES["AX650"]
    resume_after_kills(project, tables(both_chips / bundle), bundle, 2, [MANIFEST, "--config", "layers_per_job=2"])


def test_an_interrupted_build_leaves_no_process(project: Project) -> None:
    """Ctrl-C while the compiler runs."""
    project.write_matrix({"tiny": SIMULATED})
    log = project / "calls"
    started = subprocess.Popen(
        ["snakemake", "--cores", "2", MANIFEST],
        cwd=project.folder,
        env=untraced() | {"SIMULATOR_CALLS": str(log), "SIMULATOR_QUIRKS": "stuck"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    while len(calls(log)) < 2:
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    started.communicate(timeout=60)
    assert started.returncode
    wait_until_none(str(project / "results/store"))
    assert processes_with(str(project.folder)) == []


@pytest.mark.parametrize("target", ["layers", pytest.param("bundle", marks=pytest.mark.soak)])
def test_axzoo_as_the_compiler(project: Project, built: Project, target: str) -> None:
    """`axzoo llm_build` builds each slice, and the files are those of the host backend, byte by byte."""
    compiler = {"command": ["axzoo", "llm_build"], "memory_mb": 2000}
    project.write_matrix({"tiny": SIMULATED | {"compiler": compiler}})
    host, bundle = built / "results/AX650/tiny-w8a16", BUNDLES["AX650"]
    pattern = "*_l*.axmodel" if target == "layers" else "*.axmodel"
    names = sorted(path.name for path in host.glob(pattern))
    targets = [f"{bundle}/{name}" for name in names] if target == "layers" else [MANIFEST]
    run = project.snakemake(*targets, "--config", f"layers_per_job={LAYERS}")
    assert run.status == 0, run.shown
    assert len(names) == LAYERS + (target == "bundle")
    assert [sha256(project / bundle / name) for name in names] == [sha256(host / name) for name in names]
    if target == "bundle":
        assert main(["verify", str(project / bundle)]) == 0


# SmolLM2-135M


def smollm2(project: Project) -> list[str]:
    """Writes a matrix with the demo's model as s8 and s4. Returns its bundles."""
    demo = yaml.safe_load((REPOSITORY / "config/demo.yaml").read_text())
    ((name, entry),) = demo["models"].items()
    entry |= demo.get("defaults", {}) | {"chips": ["AX650"], "weight_type": ["s8", "s4"], "backend": ["pulsar2"]}
    (project / "config/zoo.yaml").write_text(yaml.safe_dump({"models": {name: entry | {"compiler": simulator()}}}))
    return [f"results/AX650/{name}-{tag}-pulsar2" for tag in ("w8a16", "w4a16")]


@pytest.mark.soak
def test_smollm2_killed_at_ten_moments(project: Project, small_llama: Path, tmp_path: Path) -> None:
    other = new_project(tmp_path / "reference", small_llama)
    bundles = smollm2(other)
    assert other.snakemake().status == 0
    assert smollm2(project) == bundles
    for bundle in bundles:
        resume_after_kills(project, tables(other / bundle), bundle, 5, [f"{bundle}/manifest.json"])


@pytest.mark.soak
@pytest.mark.slurm
def test_smollm2_on_slurm(cluster: None, project: Project, small_llama: Path, tmp_path: Path) -> None:
    """Both weight types, with the weights of a local build."""
    other = new_project(tmp_path / "reference", small_llama)
    bundles = smollm2(other)
    assert other.snakemake().status == 0
    smollm2(project)
    run = project.snakemake(*PROFILE)
    assert run.status == 0, run.shown
    assert any("rule_layers" in comment for comment in comments("all"))
    for bundle in bundles:
        assert tables(project / bundle) == tables(other / bundle)
    assert processes_with(str(project / "results/store")) == []
