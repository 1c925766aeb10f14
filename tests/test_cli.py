"""The command line: its verbs, and error messages of one line."""

from __future__ import annotations

import ast
import errno
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import axzoo
from axzoo.cli import main
from axzoo.commands import schema
from axzoo.core.errors import AxzooError
from tiny_model import Checkpoint

COMMANDS = Path(axzoo.__file__).parent / "commands"
VERBS = sorted(path.stem.replace("_", "-") for path in COMMANDS.glob("[!_]*.py"))


def _axzoo(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "axzoo.cli", *words], capture_output=True, text=True)


def test_verbs_of_the_workflow_exist() -> None:
    assert {"fetch", "lock", "compile", "bundle", "check-layers", "check-generation", "run"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: axzoo {verb}")
    summary = (COMMANDS / f"{verb.replace('-', '_')}.py").read_text().splitlines()[0].strip('"')
    assert " ".join(summary.split()) in " ".join(output.split())


@pytest.mark.parametrize("words", [["--help"], []])
def test_help_lists_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    output = capsys.readouterr().out
    for verb in VERBS:
        assert re.search(rf"^ +(VERB +)?{verb} +\S", output, re.MULTILINE)


def test_verbs_may_be_written_with_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["llm_build", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: axzoo llm_build ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"axzoo {axzoo.__version__}\n"


@pytest.mark.parametrize("verb", ["compiler", "_arguments", "", "../cli"])
def test_unknown_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "failure, message",
    [
        (AxzooError("the matrix is wrong"), "axzoo: the matrix is wrong\n"),
        (OSError(errno.ENOSPC, "x", "store/ab"), "axzoo: no space left on the disk while writing store/ab: free some"),
        (OSError(errno.EDQUOT, "x"), "axzoo: no space left on the disk while writing a file: free some"),
        (PermissionError(errno.EACCES, "Permission denied", "results"), "axzoo: results: Permission denied\n"),
        (OSError("no number"), "axzoo: a file: no number\n"),
        (AxzooError("x" * 5000), "axzoo: " + "x" * 1000 + "...\n"),
        (AxzooError("a name\x1b[2J\r"), r"axzoo: a name\x1b[2J\r"),
        (MemoryError(), "axzoo: out of memory: build with fewer jobs at once"),
    ],
)
def test_errors_that_a_user_can_fix_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: BaseException, message: str
) -> None:
    def fail(_: object) -> None:
        raise failure

    monkeypatch.setattr(schema, "run", fail)
    assert main(["schema"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_each_verb_gives_its_own_advice_when_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(importlib.import_module(f"axzoo.commands.{verb}"), "run", fail)
    assert main([verb, "bundle"]) == 1
    error = capsys.readouterr().err
    assert "--mode exact needs the least" in error
    assert "snakemake" not in error


@pytest.mark.parametrize(
    "words, message",
    [
        (["serve", "b", "--port", "x"], "argument --port: must be a whole number from 0 to 65535, not 'x'"),
        (["serve", "b", "--port", "70000"], "argument --port: must be a whole number from 0 to 65535, not '70000'"),
        (["serve", "b", "--queue", "-1"], "argument --queue: must be a whole number of 0 or more, not '-1'"),
        (["tokenizer", "--model", "m", "--port", "-1"], "argument --port: must be a whole number from 0 to 65535"),
        (["run", "b", "--max-tokens", "x"], "argument --max-tokens: must be a whole number of 1 or more, not 'x'"),
        (["run", "b", "--max-tokens", "0"], "argument --max-tokens: must be a whole number of 1 or more, not '0'"),
        (["run", "b", "--seed", "-1"], "argument --seed: must be a whole number of 0 or more, not '-1'"),
    ],
)
def test_invalid_numbers(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_interrupt_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "run", interrupt)
    assert main(["schema"]) == 130
    assert capsys.readouterr().err == ""


def test_unexpected_exceptions_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(schema, "run", bug)
    with pytest.raises(ZeroDivisionError):
        main(["schema"])


def test_failing_job_prints_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lock: list[str | Path] = [
        "lock",
        "--model_type",
        "llama",
        "--num_hidden_layers",
        "2",
        "--output",
        tmp_path / "locks",
    ]
    done = _axzoo(*lock, "--source", tmp_path / "none" / "source.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"axzoo: {tmp_path}/none/source.json is missing\n"
    done = _axzoo(*lock[:-3], "7", "--output", tmp_path / "locks", "--source", checkpoint.source)
    assert done.returncode == 1
    assert re.fullmatch(r"axzoo: .*has 2 layers, but the matrix says num_hidden_layers: 7\n", done.stderr)
    assert not (tmp_path / "locks").exists()


def test_why_with_an_unreadable_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dir").mkdir()
    Path("text").write_text("hello")
    messages = {
        "none.yaml": "cannot read none.yaml: No such file or directory",
        "dir": "dir is a folder, but a file is needed",
        "text": "text:1: the file must contain a mapping of keys to values, not 'hello'",
    }
    for name, message in messages.items():
        assert main(["why", "--configfile", name]) == 1
        assert capsys.readouterr().err == f"axzoo: {message}\n"


def test_output_that_is_not_writable(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A file in place of the folder, which works for root too."""
    (tmp_path / "results").write_text("")
    target = tmp_path / "results" / "locks"
    done = _axzoo(
        "lock", "--model_type", "llama", "--num_hidden_layers", "2", "--output", target, "--source", checkpoint.source
    )
    assert done.returncode == 1
    assert done.stderr == f"axzoo: {tmp_path}/results/locks: Not a directory\n"


def test_lock_prints_the_config_block(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = _axzoo(
        "lock",
        "--source",
        checkpoint.source,
        "--model_type=llama",
        "--num_hidden_layers=2",
        f"--output={tmp_path / 'L'}",
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Config(\n    model_name='L',\n    model_type='llama',\n    num_hidden_layers=2,\n")
    assert re.fullmatch(r"[\d: .-]+\| SUCCESS  \| axzoo\S* - prepare llm model done!\n", done.stderr)


def test_closed_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-u", "-m", "axzoo.cli", "schema"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def _advice() -> list[tuple[str, str, list[str]]]:
    """Commands in the messages of the package: (file, verb, options)."""
    found = []
    for path in sorted(Path(axzoo.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        for node in texts:
            if id(node) not in docstrings:
                for verb, rest in re.findall(r"[`']axzoo ([a-z][a-z_-]*)([^`'\n]*)", str(node.value)):
                    found.append((path.name, verb, re.findall(r"(?<= )--?[a-z][a-z_-]*", rest)))
    return found


ADVICE = _advice()


def test_messages_advise_commands() -> None:
    assert {"verify", "pack", "report"} <= {verb for _, verb, _ in ADVICE}


@pytest.mark.parametrize(("file", "verb", "options"), ADVICE)
def test_advised_commands_exist(file: str, verb: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert verb.replace("_", "-") in VERBS, file
    for words in ([verb, "--help"], [verb, "verify", "--help"])[: 2 if verb == "store" else 1]:
        with pytest.raises(SystemExit):
            main(words)
    known = set(re.findall(r"--?[a-z][a-z_-]*", capsys.readouterr().out))
    assert set(options) <= known, file
