"""A host program written for the board's Python engine runs unchanged and gives the same answer as axzoo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import EXACT

from axzoo.cli import main
from axzoo.weights.recipe import Recipe

PROGRAM = Path(__file__).parent.parent / "host_program.py"


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "axzoo.cli", "axengine", str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("prompt", ["hi", "a prompt"])
def test_the_answer_is_the_same_as_that_of_axzoo_run(
    build_bundle: Callable[[Recipe], Path], capfd: pytest.CaptureFixture[str], prompt: str
) -> None:
    """Prompts of two and of eight tokens: one chunk and two chunks."""
    bundle = build_bundle(replace(EXACT, hidden_state_type="bf16"))
    done = _run(PROGRAM, str(bundle), prompt, "6")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "provider: AxEngineExecutionProvider\n"
    assert main(["run", str(bundle), "--raw", "--greedy", "--max-tokens", "6", "--prompt", prompt]) == 0
    # `axzoo run` drops an incomplete character at the end
    assert done.stdout.rstrip("\ufffd\n") + "\n" == capfd.readouterr().out


def test_the_program_gets_its_arguments_and_imports_modules_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sibling.py").write_text("from axengine import NodeArg, SessionOptions, axclrt_provider_name")
    program = tmp_path / "program.py"
    program.write_text("import sys, sibling; print(__name__, sys.argv, sibling.axclrt_provider_name); sys.exit(3)")
    done = _run(program, "-x", "--help")
    assert done.stdout == f"__main__ {[str(program), '-x', '--help']} AXCLRTExecutionProvider\n"
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("line", "last_line"),
    [
        ("open('none.txt')", "FileNotFoundError: [Errno 2] No such file or directory: 'none.txt'"),
        ("raise MemoryError", "MemoryError"),
        ("raise BrokenPipeError", "BrokenPipeError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_exceptions_of_the_program_are_shown_as_python_shows_them(tmp_path: Path, line: str, last_line: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"import sys\n\n{line}\n")
    done, python = _run(program), subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, python.stderr)
    assert done.stderr.endswith(f"{last_line}\n")


def test_a_missing_program_gives_a_one_line_error(tmp_path: Path) -> None:
    done = _run(tmp_path / "nothing.py")
    assert (done.returncode, done.stderr) == (
        1,
        f"axzoo: {tmp_path / 'nothing.py'} is missing: pass the path of a Python file\n",
    )
