"""Fingerprints change with the modules they cover, and a build job imports only what it needs."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import axzoo
from axzoo.core.fingerprint import _closure, _imports, fingerprint

PACKAGE = Path(axzoo.__file__).parent
COMPILER = "axzoo.backends.host.compiler"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that tests may edit."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "axzoo", ignore=ignored))


def _fingerprints(package: Path, *modules: str) -> list[str]:
    """The fingerprints of modules in a copy of the package, computed in a separate process."""
    script = "import sys; from axzoo.core.fingerprint import fingerprint; print(*map(fingerprint, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], cwd=package.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_compilers_modules() -> None:
    core = {"axzoo", "axzoo.core.dtypes", "axzoo.core.errors", "axzoo.core.files", "axzoo.parts.groups"}
    model = {"axzoo.model.rope", "axzoo.model.spec"}
    weights = {f"axzoo.weights.{name}" for name in ("encoding", "recipe", "scales", "stored")}
    host = {f"axzoo.backends.host.{name}" for name in ("attention", "builder", "compiler", "container", "operators")}
    assert set(_closure((COMPILER,))) == core | model | weights | host


def test_every_import_is_found() -> None:
    for path in PACKAGE.rglob("*.py"):
        names = set()
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and "# unfollowed" in lines[node.lineno - 1]:
                continue
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert set(_imports(path)) == {name for name in names if name.split(".")[0] == "axzoo"}, path


@pytest.mark.parametrize(
    "name", ["runtime", "matrix", "check", "fetch", "commands", "tokenizer", "bundle", "report", "serving"]
)
def test_the_compiler_does_not_depend_on(name: str) -> None:
    for module in (COMPILER, "axzoo.weights.bf16"):
        assert not [found for found in _closure((module,)) if found.startswith(f"axzoo.{name}")]


@pytest.mark.parametrize("name", ["axzoo_stamp", "foo.bar", "axzoo.no_such", "axzoo.backends.no_such"])
def test_only_modules_of_axzoo_have_fingerprints(name: str) -> None:
    """The fingerprint of another package would never change."""
    with pytest.raises(ValueError, match=f"{name} is not a module of axzoo"):
        fingerprint(name)


def test_a_change_affects_only_dependent_fingerprints(package: Path) -> None:
    modules = [COMPILER, "axzoo.weights.bf16", "axzoo.parts.lock", "axzoo.bundle.completion"]
    before = _fingerprints(package, *modules)
    assert before == [fingerprint(module) for module in modules]
    assert len(set(before)) == 4

    def changed(path: str) -> list[bool]:
        file = package / path
        source = file.read_text()
        file.write_text(source + "\n# a comment\n")
        after = _fingerprints(package, *modules)
        file.write_text(source)
        return [a != b for a, b in zip(after, before, strict=True)]

    assert changed("weights/scales.py") == [True, False, False, False]
    assert changed("weights/bf16.py") == [False, True, False, False]
    assert changed("checkpoint/safetensors.py")[:2] == [False, False]
    assert changed("runtime/post_config.py") == [False, False, False, True]
    assert changed("weights/formats.py") == [False, False, False, True]
    assert changed("runtime/chat.py") == [False, False, False, False]
    assert changed("commands/compile.py") == [False] * 4
    assert changed("check/metrics.py") == [False] * 4
    assert _fingerprints(package, *modules) == before


def test_renaming_a_module_changes_the_fingerprint(package: Path) -> None:
    before = _fingerprints(package, COMPILER)
    host = package / "backends" / "host"
    (host / "operators.py").rename(host / "nodes.py")
    for file in host.glob("*.py"):
        file.write_text(file.read_text().replace("axzoo.backends.host.operators", "axzoo.backends.host.nodes"))
    assert _fingerprints(package, COMPILER) != before


def test_a_fingerprint_has_sixteen_hex_digits_and_ignores_the_order() -> None:
    assert len(fingerprint(COMPILER)) == 16
    assert int(fingerprint(COMPILER), 16) >= 0
    assert fingerprint(COMPILER, "axzoo.bundle.completion") == fingerprint("axzoo.bundle.completion", COMPILER)
    assert fingerprint(COMPILER, "axzoo.bundle.completion") != fingerprint(COMPILER)


@pytest.mark.parametrize(
    "modules, unwanted",
    [
        (
            "axzoo.commands.compile, axzoo.backends.part_job, axzoo.backends.host.compiler",
            {
                "torch",
                "transformers",
                "onnxruntime",
                "pydantic",
                "huggingface_hub",
                "gguf",
                "rich",
                "yaml",
                "tokenizers",
            },
        ),
        ("axzoo.cli, axzoo.commands.run, axzoo.commands.check_layers", {"numpy", "torch", "onnx", "transformers"}),
        ("axzoo.matrix.plan, axzoo.core.fingerprint", {"numpy", "onnx", "torch", "transformers", "onnxruntime"}),
        ("axzoo.runtime.engine, axzoo.runtime.model", {"onnx", "torch", "transformers", "pydantic", "safetensors"}),
        ("axzoo.parts.lock, axzoo.checkpoint.safetensors", {"torch", "onnx", "onnxruntime", "transformers"}),
    ],
)
def test_a_job_imports_only_what_it_uses(modules: str, unwanted: set[str]) -> None:
    script = f"import sys, {modules}; print(*{unwanted!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
