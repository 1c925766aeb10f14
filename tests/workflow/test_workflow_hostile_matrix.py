"""Matrices from strangers: only axzoo's reader reads them. It evaluates nothing and refuses each in one line."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from workflow_project import Project, untraced
from yte import process_yaml

pytestmark = pytest.mark.workflow

YTE = {
    "definitions": "__use_yte__: true\n__definitions__:\n  - EVALUATE\nmodels: {}\n",
    "value": "__use_yte__: true\nmodels:\n  tiny: ?EVALUATE\n",
    "condition": "__use_yte__: true\n?if EVALUATE is None:\n  models: {}\n",
    "variables": "__use_yte__: true\n__variables__:\n  x: ?EVALUATE\nmodels: {}\n",
    "loop": "__use_yte__: true\n?for x in [EVALUATE]:\n  models: {}\n",
}
"""By file name: all forms in which Snakemake's reader evaluates an expression."""


def write_yte(project: Project, name: str) -> str:
    """Writes a matrix that creates the file NAME.evaluated when it is evaluated. Returns its name."""
    expression = f'__import__("pathlib").Path("{name}.evaluated").touch()'
    (project / f"{name}.yaml").write_text(YTE[name].replace("EVALUATE", expression))
    return f"{name}.yaml"


def run(project: Project, *command: str) -> str:
    """The output of a command that must fail without a traceback, in one line except for lists of keys."""
    done = subprocess.run(
        command, cwd=project.folder, env=untraced(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    assert 'File "' not in done.stdout
    return done.stdout


def test_nothing_is_evaluated(project: Project) -> None:
    files = [write_yte(project, name) for name in YTE]
    entry = ("snakemake", "--snakefile", "workflow/Snakefile", "-n")
    for command in (("snakemake", "--cores", "1"), entry, ("axzoo", "why")):
        shown = run(project, *command, "--configfile", *(files if command[0] == "snakemake" else files[:1]))
        assert "definitions.yaml:1: unknown key '__use_yte__' in the file" in shown
        assert not list(project.folder.glob("*.evaluated"))


def test_snakemake_alone_would_evaluate_it(project: Project) -> None:
    """The expressions of the test above are written correctly."""
    for name in YTE:
        with (project / write_yte(project, name)).open() as file, contextlib.chdir(project.folder):
            process_yaml(file, require_use_yte=True)
    assert {path.stem for path in project.folder.glob("*.evaluated")} == YTE.keys()


def test_other_workflows_keep_their_reader(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text("print('the number is', config['number'])\n")
    (tmp_path / "config.yaml").write_text("__use_yte__: true\nnumber: ?6 * 7\n")
    done = subprocess.run(
        ["snakemake", "-n", "--configfile", "config.yaml"], cwd=tmp_path, env=untraced(), capture_output=True, text=True
    )
    assert "the number is 42" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tabs.yaml", b"models:\n\ttiny: 1\n", "tabs.yaml:2: not valid YAML: "),
        ("binary.yaml", b"\xff\n", "binary.yaml:1: not UTF-8 text: save the file as UTF-8"),
        ("missing.yaml", None, "missing.yaml: No such file or directory"),
    ],
)
def test_unreadable_matrices_are_refused_in_one_line(
    project: Project, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (project / name).write_bytes(content)
    shown = run(project, "snakemake", "-n", "--configfile", name).splitlines()
    assert [message in line for line in shown if name in line] == [True], shown


def test_a_target_after_configfile_is_refused_with_a_command_that_works(project: Project) -> None:
    target = "results/checkpoints/tiny/source.json"
    shown = run(project, "snakemake", "--cores", "1", "--configfile", "config/zoo.yaml", target)
    message, _, command = shown.strip().splitlines()[-1].partition("put targets first, as in ")
    assert f"{target} is not a matrix, but --configfile takes all words that follow it" in message
    done = project.snakemake(*command.strip("`").split()[1:])
    assert done.jobs == {"fetch": 1}, done.shown
