"""Verbs in environments that cannot encode what they print, or have no stdout, with names and text beyond ASCII."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from axzoo.bundle.completion import complete_bundle
from tiny_model import Built

BUNDLE = Path("results/AX650/tiny-w8a16")
PROMPT = "é 中 What?"
MATRIX = f"""
models:
  tiny: {{path: chéckpoint中, model_type: llama, num_hidden_layers: 2, chips: AX650, prefill_len: 8, kv_cache_len: 31,
         prompt: "{PROMPT}"}}
"""
SH = 'exec "$0" -m axzoo.cli "$@"'
ENVIRONMENTS = {
    "ascii streams": ({"PYTHONIOENCODING": "ascii"}, SH),
    "latin-1 streams": ({"PYTHONIOENCODING": "latin-1"}, SH),
    "ascii locale": ({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}, SH),
    "no stdout": ({}, f"{SH} >&-"),
    "no streams": ({}, f"{SH} <&- >&- 2>&-"),
}
"""By name: environment variables, and the shell command that runs axzoo."""


@pytest.fixture(scope="module")
def project(s8: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, its lock and its checkpoint."""
    folder = tmp_path_factory.mktemp("pröjekt 中")
    (folder / "config").mkdir()
    shutil.copy(Path(__file__).parents[2] / "config/chips.yaml", folder / "config")
    (folder / "config/zoo.yaml").write_text(MATRIX, "utf-8")
    complete_bundle(s8.moved(folder / BUNDLE).plan)
    for name in ("störe", "réceipts"):
        (folder / name).mkdir()
    shutil.copytree(s8.locks, folder / "locks")
    shutil.copytree(s8.source.parent, folder / "chéckpoint中")
    return folder


def axzoo(folder: Path, environment: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    variables, command = ENVIRONMENTS[environment]
    given = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    return subprocess.run(
        ["sh", "-c", command, sys.executable, *words], cwd=folder, env=given | variables, capture_output=True
    )


VERBS = {
    "families": (),
    "schema": (),
    "report": ("config/zoo.yaml",),
    "inspect": (f"{BUNDLE}/llama_post.axmodel",),
    "verify": (str(BUNDLE),),
    "run": (str(BUNDLE), f"--prompt={PROMPT}", "--raw", "--greedy", "--max-tokens=3"),
    "pack": (str(BUNDLE), "päck.tar"),
    "store": ("size", "--store=störe"),
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("verb", VERBS)
def test_verbs_succeed(project: Path, verb: str, environment: str) -> None:
    done = axzoo(project, environment, verb, *VERBS[verb])
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert bool(done.stdout) == (environment.startswith(("ascii", "latin")) and verb != "pack")
    if verb == "pack":
        assert (project / "päck.tar").stat().st_size > 0
        (project / "päck.tar").unlink()
    if environment == "ascii streams":
        done.stdout.decode("ascii")
        done.stderr.decode("ascii")


def test_checks_pass_and_understand_the_prompt(project: Path) -> None:
    """In the ASCII locale, axzoo runs in UTF-8 mode; with ASCII streams, it prints escapes."""
    verb, where = "check-generation", (str(BUNDLE), "--lock", "locks", "--source", "chéckpoint中/source.json", "--raw")
    logs = {}
    for environment in ("ascii locale", "ascii streams", "no stdout"):
        report = f"chécks/{environment}.json"
        done = axzoo(project, environment, verb, *where, f"--prompt={PROMPT}", "--output", report)
        assert done.returncode == 0, done.stderr
        assert (project / report).exists()
        logs[environment] = done.stdout
    assert PROMPT.encode() in logs["ascii locale"]
    assert PROMPT.encode("ascii", "backslashreplace") in logs["ascii streams"]
    assert logs["no stdout"] == b""


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_server_answers(project: Path, environment: str) -> None:
    """It prints its address, and one line for each request."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables, command = ENVIRONMENTS[environment]
    words = [sys.executable, "serve", str(BUNDLE), "--port", str(port), "--mode", "exact"]
    server = subprocess.Popen(
        ["sh", "-c", command, *words],
        cwd=project,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        body = json.dumps({"model": BUNDLE.name, "prompt": PROMPT, "max_tokens": 2}).encode()
        request = Request(f"http://localhost:{port}/v1/completions", body, {"Content-Type": "application/json"})
        answer = None
        while answer is None and server.poll() is None:
            try:
                answer = json.load(urlopen(request, timeout=20))
            except HTTPError as error:
                pytest.fail(error.read().decode())
            except URLError:  # not listening yet
                time.sleep(0.05)
        assert answer is not None
        assert answer["usage"]["completion_tokens"] == 2
        assert server.poll() is None
    finally:
        server.terminate()
        _, shown = server.communicate(timeout=20)
    assert b"Traceback" not in shown


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_errors_are_one_line(project: Path, environment: str) -> None:
    done = axzoo(project, environment, "inspect", "nö/中")
    assert done.returncode == 1
    if environment != "no streams":
        assert done.stderr.count(b"\n") == 1
        assert done.stderr.startswith(b"axzoo: n")


def test_closed_stdout_does_not_write_into_other_files(project: Path) -> None:
    """Without descriptor 1, the next file that is opened would get this number, and the output."""
    program = (
        "import sys; from axzoo.core.console import open_standard_streams as o; o(); f = open('x', 'w'); print('y')"
    )
    subprocess.run(["sh", "-c", f'exec {sys.executable} -c "{program}" >&-'], cwd=project, check=True)
    assert (project / "x").read_text() == ""


def test_bytes_that_are_not_utf8_are_one_line(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "axzoo.cli", "fetch", "--path", b"b\xff", "--output", "out"],
        cwd=project,
        capture_output=True,
    )
    os.mkdir(os.path.join(os.fsencode(project), b"b\xff"))  # noqa: PTH102, PTH118
    shutil.copy(project / "chéckpoint中/config.json", os.fsencode(project) + b"/b\xff/config.json")
    again = subprocess.run(
        [sys.executable, "-m", "axzoo.cli", "fetch", "--path", b"b\xff", "--output", "out"],
        cwd=project,
        capture_output=True,
    )
    for run in (done, again):
        assert run.returncode == 1
        assert run.stderr.count(b"\n") == 1, run.stderr
    assert not (project / "out/source.json").exists()


def test_full_disk_under_the_log_is_an_exit_status() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "axzoo.cli", "inspect", "missing"], stderr=full)
        assert done.returncode == 28
        done = subprocess.run([sys.executable, "-m", "axzoo.cli", "schema"], stdout=full, stderr=full)
        assert done.returncode == 28
        shown = subprocess.run(
            [sys.executable, "-m", "axzoo.cli", "schema"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert shown.returncode == 1
    assert shown.stderr == "axzoo: no space left on the disk while writing a file: free some space and run again\n"
