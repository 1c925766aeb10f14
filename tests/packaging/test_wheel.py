"""The wheel, installed with the dependencies of this environment, contains all its files and runs without the
repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tiny_model import Checkpoint

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "Snakefile", "src", "workflow", "config")
LAYERS = 2


@dataclass(frozen=True)
class Environment:
    """A virtual environment in which only the wheel is installed; other packages come from this environment."""

    folder: Path

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program in an empty folder outside the repository; return its output."""
        work = self.folder.with_name("work")
        work.mkdir(exist_ok=True)
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=work,
            env=_outside(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def _outside() -> dict[str, str]:
    """The environment variables, except those through which Python would find the repository."""
    names = ("PYTHONPATH", "VIRTUAL_ENV", "COLUMNS")
    kept = {k: v for k, v in os.environ.items() if k not in names and not k.startswith("COVERAGE_")}
    return kept | {"COLUMNS": "120"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, because setuptools leaves files among them."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "axzoo"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, copy], cwd=folder, env=_outside(), check=True)
    (path,) = folder.glob("axzoo-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, env=_outside(), check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Folders in a .pth file come after the environment's own packages, and .pth files in these folders are not read.
    seen = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (folder / "lib" / version / "site-packages/dependencies.pth").write_text("\n".join(seen) + "\n")
    return Environment(folder)


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_axzoo_is_imported_from_the_wheel(installed: Environment) -> None:
    script = "import axzoo, snakemake_logger_plugin_axzoo as plugin; print(axzoo.__file__); print(plugin.__file__)"
    for line in installed.run("python", "-c", script).splitlines():
        assert Path(line).is_relative_to(installed.folder)


def test_requirements_are_ranges(metadata: Message) -> None:
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {"numpy", "onnx", "snakemake", "torch"} <= {requirement.name for requirement in requirements}
    for requirement in requirements:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators <= {">=", "<"}, requirement
        assert ">=" in operators or requirement.name == "axzoo", requirement
    assert set(metadata.get_all("Provides-Extra", [])) == {"bench", "cluster", "test"}


def test_wheel_contains_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    rules = {f"axzoo/project/workflow/rules/{path.name}" for path in (ROOT / "workflow/rules").glob("*.smk")}
    assert rules | {"axzoo/project/Snakefile", "axzoo/project/config/chips.yaml", "axzoo/serving/page.html"} <= names
    data = {f"axzoo/forecast/{path.name}" for path in (ROOT / "src/axzoo/forecast").glob("*.[cj]s*")}
    assert len(data) == 4 and data <= names
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == source


def test_program_starts(installed: Environment) -> None:
    from axzoo import __version__

    assert installed.run("axzoo", "--version").strip() == f"axzoo {__version__}"
    assert "qwen3" in installed.run("axzoo", "families")


def test_wheel_builds_a_model(installed: Environment, checkpoint: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    options = ["--chip", "AX650", "--prefill_len", "8", "--kv_cache_len", "31"]
    shown = installed.run("axzoo", "llm_build", "--input_path", checkpoint.folder, "--output_path", output, *options)
    assert "build llm model done!" in shown
    files = {path.name for path in output.iterdir()}
    assert {f"llama_p8_l{layer}_together.axmodel" for layer in range(LAYERS)} <= files
    assert {"manifest.json", "llama_post.axmodel"} <= files
    installed.run("axzoo", "verify", output)
