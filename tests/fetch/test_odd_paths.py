"""Checkpoints in folders with odd names and in odd states: read as any other, or refused in one line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.outlook import build_problems
from tiny_model import LAYERS, Checkpoint

CHIPS = Path(__file__).parents[2] / "config/chips.yaml"

NAMES = [
    " ", "a b", " a", "a ", "a\tb", "a\nb", "a\rb", "\x01", "\x7f", "\x1b[31m", "'", '"', "`id`", "$HOME", "${HOME}",
    "$(id)", "~", "~root", "%s", "%(a)s", "%00", "{}", "{model}", "{{x}}", "{", "[a]", "*", "?", "a;b", "a&b", "a|b",
    "<a>", "!", "#x", "\\", "a\\nb", ",", "=", ":", "@x", "-rf", "--help", "-", "...", ".hidden", "null", "true", "1e3",
    "é", "e\u0301", "中", "🙂", "\u202e", "\u200b", "\u00a0", "x" * 255, "/".join(["x" * 200] * 15),
]  # fmt: skip
REFUSED = {"\udcff": "not UTF-8"}
"""Names that are refused, with words of the message."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(path: str) -> int:
    """Fetches and locks a checkpoint, as the jobs of a build do."""
    status = main(["fetch", f"--path={path}", "--output", "out"])
    if status:
        return status
    options = ["--model_type", "llama", "--num_hidden_layers", str(LAYERS), "--output", "locks"]
    return main(["lock", "--source", "out/source.json", *options])


def problems(path: str) -> list[str]:
    """What a plan says about an entry with this path."""
    entry = {"path": path, "model_type": "llama", "num_hidden_layers": LAYERS, "chips": ["AX650"], "kv_cache_len": 63}
    matrix = {"models": {"tiny": entry | {"prefill_len": 0}}}
    Path("zoo.yaml").write_text(yaml.safe_dump(matrix, allow_unicode=True), "utf-8")
    try:
        return [line for found in load_zoo(Path("zoo.yaml"), CHIPS).builds() for line in build_problems(found)]
    except AxzooError as error:
        return [str(error)]


def digests(locks: Path) -> list[object]:
    return [read_json(path)["tensors"] for path in sorted(locks.glob("layer_*.json"))]


def odd_states(folder: Path) -> dict[str, Callable[[], object]]:
    """By name: makes the path `odd`, from a sound checkpoint in `folder`."""
    odd = Path("odd")

    def linked_files(pattern: str) -> None:
        shutil.copytree(folder, odd)
        for file in folder.glob(pattern):
            (odd / file.name).unlink()
            (odd / file.name).symlink_to(file)

    return {
        "a link": lambda: odd.symlink_to(folder),
        "a link to a link": lambda: (Path("between").symlink_to(folder), odd.symlink_to("between")),
        "links to weights": lambda: linked_files("*.safetensors"),
        "links to files that bundles copy": lambda: linked_files("*"),
        "a link to itself": lambda: odd.symlink_to("odd"),
        "two links in a circle": lambda: (odd.symlink_to("other"), Path("other").symlink_to("odd")),
        "a link to nothing": lambda: odd.symlink_to("nowhere"),
        "nothing": lambda: None,
        "an empty folder": odd.mkdir,
        "a text file": lambda: odd.write_text("x"),
        "a pipe": lambda: os.mkfifo(odd),
        "a device": lambda: odd.symlink_to("/dev/null"),
        "a folder named config.json": lambda: (odd / "config.json").mkdir(parents=True),
    }


SOUND_STATES = {"a link", "a link to a link", "links to weights"}


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:24] for name in NAMES])
def test_a_folder_with_an_odd_name_is_read_as_any_other(checkpoint: Checkpoint, name: str) -> None:
    folder = f"models/{name}" if "/" in name or name.startswith("x" * 200) else name
    shutil.copytree(checkpoint.folder, folder)
    if name.startswith("-") or any(ord(char) < 32 for char in name):
        (problem,) = problems(folder)  # a matrix is made by hand or by a stranger
        assert problem.startswith("zoo.yaml:")
        assert "models.tiny.path: " in problem
        assert "\n" not in problem
        assert problems(f"./{folder}") == [] or name.isprintable() is False
    else:
        assert problems(folder) == []
    assert build(folder) == 0
    found = digests(Path("locks"))
    shutil.rmtree("locks")
    assert build(str(checkpoint.folder)) == 0
    assert found == digests(Path("locks"))


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_is_refused(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], name: str) -> None:
    shutil.copytree(checkpoint.folder, name)
    assert build(name) == 1
    assert REFUSED[name] in _only_line(capsys)
    assert not Path("locks").exists()


@pytest.mark.parametrize("state", odd_states(Path()))
def test_a_folder_in_an_odd_state(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], state: str) -> None:
    odd_states(checkpoint.folder)[state]()
    said = problems("odd")
    status = build("odd")
    assert (status == 0) == (said == []) == (state in SOUND_STATES)
    if said:
        assert len(said) == 1
        assert "\n" not in said[0]
        assert "odd" in said[0]
        assert "odd" in _only_line(capsys)
        assert not Path("locks").exists()


def _only_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("axzoo: ")]
    return line
