"""What rebuilds what: the closure of imports, and what a build job loads."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import axzoo
from axzoo.fingerprint import _closure, _imports, fingerprint

PACKAGE = Path(axzoo.__file__).parent
COMPILER = "axzoo.backends.host"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "axzoo", ignore=ignored))


def _fingerprints(package: Path, *modules: str) -> list[str]:
    """Of a copy, in a process of its own."""
    script = "import sys; from axzoo.fingerprint import fingerprint; print(*map(fingerprint, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], cwd=package.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_compiler_is_what_determines_the_bytes() -> None:
    found = set(_closure((COMPILER,)))
    compiler = {"axzoo", "axzoo.axmodel", "axzoo.dtypes", "axzoo.errors", "axzoo.files", "axzoo.recipe", "axzoo.rope"}
    packages = ("backends", "compile", "graph", "quantize")
    assert compiler < found
    for name in ("graph", "quantize", "compile"):
        modules = {f"axzoo.{name}.{path.stem}" for path in (PACKAGE / name).glob("*.py") if path.stem != "__init__"}
        assert modules - {"axzoo.compile.embed", "axzoo.quantize.gptq"} <= found
    others = {name for name in found - compiler if not name.startswith(tuple(f"axzoo.{p}" for p in packages))}
    assert others == {"axzoo.spec"}


def test_every_import_of_every_module_is_seen() -> None:
    for path in PACKAGE.rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert set(_imports(path)) == {name for name in names if name.split(".")[0] == "axzoo"}, path


@pytest.mark.parametrize("name", ["runtime", "zoo", "check", "fetch", "commands", "tokenizer", "engine", "bundle"])
def test_no_compiler_module_owes_anything_to(name: str) -> None:
    for module in (COMPILER, "axzoo.compile.embed"):
        assert not [found for found in _closure((module,)) if found.startswith(f"axzoo.{name}")]


def test_a_change_is_seen_where_it_matters_and_nowhere_else(package: Path) -> None:
    modules = [COMPILER, "axzoo.compile.embed", "axzoo.checkpoint.lock", "axzoo.bundle"]
    before = _fingerprints(package, *modules)
    assert before == [fingerprint(module) for module in modules]
    assert len(set(before)) == 4

    def changed(path: str) -> list[bool]:
        file = package / path
        source = file.read_text()
        file.write_text(source + "\n# another word\n")
        after = _fingerprints(package, *modules)
        file.write_text(source)
        return [a != b for a, b in zip(after, before, strict=True)]

    assert changed("quantize/rows.py") == [True, False, False, False]
    assert changed("compile/embed.py") == [False, True, False, False]
    assert changed("checkpoint/safetensors.py")[:2] == [False, False]
    assert changed("runtime/post_config.py") == [False, False, False, True]
    assert changed("runtime/sampling.py") == [False, False, False, False]
    assert changed("commands/layer.py") == [False] * 4
    assert changed("check/metrics.py") == [False] * 4
    assert _fingerprints(package, *modules) == before


def test_a_module_that_is_moved_is_another(package: Path) -> None:
    before = _fingerprints(package, COMPILER)
    (package / "graph" / "mlp.py").rename(package / "graph" / "gate.py")
    layer = package / "compile" / "layer.py"
    layer.write_text(layer.read_text().replace("axzoo.graph.mlp", "axzoo.graph.gate"))
    assert _fingerprints(package, COMPILER) != before


def test_a_fingerprint_is_sixteen_hex_digits_and_needs_no_order() -> None:
    assert len(fingerprint(COMPILER)) == 16
    assert int(fingerprint(COMPILER), 16) >= 0
    assert fingerprint(COMPILER, "axzoo.bundle") == fingerprint("axzoo.bundle", COMPILER)
    assert fingerprint(COMPILER, "axzoo.bundle") != fingerprint(COMPILER)


@pytest.mark.parametrize(
    "modules, unwanted",
    [
        (
            "axzoo.commands.layer, axzoo.commands.post, axzoo.build, axzoo.backends.host",
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
        ("axzoo.zoo.plan, axzoo.fingerprint", {"numpy", "onnx", "torch", "transformers", "onnxruntime"}),
        ("axzoo.engine, axzoo.runtime.model", {"onnx", "torch", "transformers", "pydantic", "safetensors"}),
        ("axzoo.checkpoint.lock, axzoo.checkpoint.safetensors", {"torch", "onnx", "onnxruntime", "transformers"}),
    ],
)
def test_a_job_loads_only_what_it_uses(modules: str, unwanted: set[str]) -> None:
    script = f"import sys, {modules}; print(*{unwanted!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
