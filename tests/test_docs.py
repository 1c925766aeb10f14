"""All commands in the documentation exist, with the options that they are given."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "config/README.md", *(ROOT / "docs").glob("*.md")])


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield page.name, words


COMMANDS = list(commands())


def parameters(program: str) -> list[object]:
    return [
        pytest.param(words, id=f"{page}: {' '.join(words)}"[:90]) for page, words in COMMANDS if words[0] == program
    ]


def test_pages_contain_only_known_programs() -> None:
    programs = {words[0] for _, words in COMMANDS}
    assert {"make", "snakemake", "axzoo"} <= programs
    scripts = {program for program in programs if program.startswith("scripts/")}
    assert programs - scripts <= {
        *("make", "snakemake", "axzoo", "python", "pytest", "pip", "podman"),
        *("docker", "export", "scp", "ssh"),
    }
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


@pytest.mark.parametrize("words", parameters("make"))
def test_make_targets_exist(words: list[str]) -> None:
    targets = [word for word in words[1:] if "=" not in word]
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("words", parameters("axzoo"))
def test_axzoo_accepts_the_arguments(words: list[str]) -> None:
    module = importlib.import_module(f"axzoo.commands.{words[1].replace('-', '_')}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    parser.parse_args(words[2:])


@pytest.mark.parametrize("words", parameters("python"))
def test_scripts_accept_the_arguments(words: list[str]) -> None:
    assert (ROOT / words[1]).is_file()
    help_text = subprocess.run(
        [sys.executable, words[1], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in (word for word in words[2:] if word.startswith("--")):
        assert option in help_text.stdout


def plans() -> list[object]:
    """The snakemake commands, without those that differ only in options that do not matter in a dry run."""
    different = {
        tuple(w for w in words if w not in ("-n", "--cores", "8")): words
        for _, words in COMMANDS
        if words[0] == "snakemake"
    }
    return [pytest.param(words, id=" ".join(words)[:90]) for words in different.values()]


@pytest.mark.workflow
@pytest.mark.parametrize("words", plans())
def test_snakemake_accepts_the_command(words: list[str]) -> None:
    tool = Path(sys.executable).with_name("snakemake")
    run = subprocess.run(
        [tool, *words[1:], "-n", "--cores", "1", "--nolock"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
