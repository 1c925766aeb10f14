"""Every kind of reason in the plan of a small project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.report.events import PlannedJob, Reason, planned_jobs
from axzoo.report.why import describe_reasons

pytestmark = pytest.mark.workflow

SNAKEFILE = """
from pathlib import Path
print("a Snakefile may print")
def locked(w):
    checkpoints.lock.get(model="tiny")
    return "locked.txt"
rule all:
    input: "lost.txt", "copied.txt", "sized_tiny.txt", "coded.txt", "joined.txt", "edited.txt", "layer.txt", "next.txt"
rule lost:
    output: "lost.txt"
    shell: "touch {output}"
rule copied:
    input: "source.txt"
    output: "copied.txt"
    shell: "cp {input} {output}"
rule sized:
    output: "sized_{model}.txt"
    params: recipe=["--kv_cache_len", "63"], number=3
    shell: "touch {output}"
rule coded:
    output: "coded.txt"
    params: code="8e2c2dc0e74a8cd0"
    shell: "touch {output}"
rule joined:
    input: sorted(map(str, Path().glob("part*.txt")))
    output: "joined.txt"
    shell: "touch {output}"
rule edited:
    output: "edited.txt"
    shell: "echo one > {output}"
rule next:
    input: "copied.txt", "lost.txt"
    output: "next.txt"
    shell: "touch {output}"
checkpoint lock:
    input: "source.txt"
    output: "lock_{model}.txt"
    shell: "touch {output} locked.txt"
rule layer:
    input: locked
    output: "layer.txt"
    shell: "touch {output}"
"""
CHANGES = {
    '"63"': '"31"',
    "number=3": "number=4",
    "8e2c2dc0e74a8cd0": "7bfead4f6cb68323",
    "echo one": "echo two",
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PlannedJob]:
    """The planned jobs by rule, after a build and changes to all inputs."""
    folder = tmp_path_factory.mktemp("reasons")
    snakefile = folder / "Snakefile"
    snakefile.write_text(SNAKEFILE)
    (folder / "source.txt").write_text("one")
    (folder / "part1.txt").touch()
    subprocess.run([sys.executable, "-m", "snakemake", "--cores=1", "--quiet=all"], cwd=folder, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert planned_jobs([], None) == []
        (folder / "lost.txt").unlink()
        (folder / "source.txt").write_text("two")
        (folder / "part1.txt").rename(folder / "part2.txt")
        text = SNAKEFILE
        for before, now in CHANGES.items():
            text = text.replace(before, now)
        snakefile.write_text(text)
        return {job.rule: job for job in planned_jobs([], None)}


def test_jobs_are_planned_after_their_dependencies(planned: dict[str, PlannedJob]) -> None:
    rules = list(planned)
    assert sorted(rules) == sorted(["lost", "copied", "sized", "coded", "joined", "edited", "next", "lock", "layer"])
    assert rules.index("next") > max(rules.index("copied"), rules.index("lost"))
    assert rules.index("layer") > rules.index("lock")
    assert (planned["sized"].file, planned["sized"].wildcards) == ("sized_tiny.txt", {"model": "tiny"})


@pytest.mark.parametrize(
    ("rule", "reason", "words"),
    [
        ("lost", Reason("missing_output", ("lost.txt",)), "missing: lost.txt"),
        ("copied", Reason("updated_input", ("source.txt",)), "changed: source.txt"),
        (
            "sized",
            Reason("params_changed", before=(3, ["--kv_cache_len", "63"]), now=(4, ["--kv_cache_len", "31"])),
            "its arguments changed: kv_cache_len 63 -> 31, 3 -> 4",
        ),
        (
            "coded",
            Reason("params_changed", before=("8e2c2dc0e74a8cd0",), now=("7bfead4f6cb68323",)),
            "the axzoo code that it depends on changed",
        ),
        (
            "joined",
            Reason("input_changed", before=("part1.txt",), now=("part2.txt",)),
            "the set of its input files changed: added part2.txt; removed part1.txt",
        ),
        ("edited", Reason("code_changed"), "its command changed"),
        (
            "next",
            Reason("updated_input_run", ("copied.txt", "lost.txt")),
            "will be rebuilt: copied.txt, lost.txt",
        ),
    ],
)
def test_reasons(planned: dict[str, PlannedJob], rule: str, reason: Reason, words: str) -> None:
    assert (planned[rule].reasons, planned[rule].awaits) == ((reason,), ())
    assert describe_reasons(planned[rule]) == [words]


def test_job_that_depends_on_a_checkpoint(planned: dict[str, PlannedJob]) -> None:
    assert planned["layer"].reasons == (Reason("updated_input_run", ("lock_tiny.txt",)),)
    assert planned["layer"].awaits == ("lock",)


def test_interrupted_job_and_target_without_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Snakefile").write_text('rule a:\n    output: "a.txt"\n    shell: "touch {output}; kill -9 $PPID $$"\n')
    assert subprocess.run([sys.executable, "-m", "snakemake", "--cores=1", "--quiet=all"]).returncode
    (job,) = planned_jobs(["a.txt"], None)
    assert job.reasons == (Reason("incomplete_output", ("a.txt",)),)
    with pytest.raises(AxzooError, match=r"^snakemake cannot plan this build:\nMissingRuleException:\n.*b\.txt"):
        planned_jobs(["b.txt"], None)
    assert capfd.readouterr().out == ""
