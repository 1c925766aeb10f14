"""What a bundle was made of and with, as a bill of materials: a CycloneDX 1.6 document inside the manifest.

https://cyclonedx.org/docs/1.6/json. It has no serial number and no time, so that equal inputs and versions give equal
bytes on any machine. Packages carry no hashes: those of their installed files differ between platforms.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import yaml

from axzoo import __version__
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.weights.formats import is_calibrated
from axzoo.weights.recipe import Recipe

_LIBRARIES = ("gguf", "ml_dtypes", "numpy", "onnx", "safetensors", "tokenizers")
"""Take part in making a bundle's bytes."""
_FRONT_MATTER_LIMIT = 64 << 10
_ENTRY_LIMIT = 1000

_TEXT = "tag:yaml.org,2002:str"

Component = dict[str, Any]


def bill_of_materials(receipt: Mapping[str, Any], checkpoint: Path, recipe: Recipe) -> dict[str, Any]:
    """The document, plain JSON. `receipt` is the content of source.json, `checkpoint` the folder of its files.

    Raises AxzooError when the receipt is damaged.
    """
    try:
        files = {str(name): record.get("sha256") for name, record in receipt["files"].items()}
        model = _model(receipt["source"], files, licences(checkpoint))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise AxzooError(f"source.json of {checkpoint} is damaged ({error!r}): fetch the checkpoint again") from None
    python = platform.python_version()
    torch = is_calibrated(recipe) or any(name.endswith(".bin") for name in files)
    libraries = sorted([*_LIBRARIES, "torch"] if torch else _LIBRARIES)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [
            _package("application", "axzoo", __version__),
            _component("platform", "python", python, f"pkg:generic/python@{python}"),
            *(_package("library", name, importlib.metadata.version(name)) for name in libraries),
            model,
        ],
    }


def _model(source: Mapping[str, str], files: Mapping[str, str | None], named: list[str]) -> Component:
    """The checkpoint. Files without a hash are left out: the lock digests their tensors, and the parts' keys say so."""
    kind = "machine-learning-model"
    if "hub" in source:
        version = source.get("commit", source["revision"])
        model = _component(kind, source["hub"], version, f"pkg:huggingface/{quote(source['hub'])}@{_quoted(version)}")
    elif "pypi" in source:
        name, _, version = source["pypi"].partition("==")
        model = _package(kind, name, version)
    else:
        model = {"type": kind, "name": PurePath(source["path"]).name or source["path"]}
    if named:
        model["licenses"] = [{"license": {"name": name}} for name in named]
    hashes = {name: sha256 for name, sha256 in sorted(files.items()) if sha256 is not None}
    if hashes:
        model["components"] = [
            {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": sha256}]}
            for name, sha256 in hashes.items()
        ]
    return model


def _package(kind: str, name: str, version: str) -> Component:
    """One of PyPI, whose purl has the name as PEP 503 normalizes it."""
    return _component(kind, name, version, f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{_quoted(version)}")


def _component(kind: str, name: str, version: str, purl: str) -> Component:
    return {"type": kind, "name": name, "version": version, "purl": purl}


def _quoted(version: str) -> str:
    return quote(version, safe="")


def licences(checkpoint: Path) -> list[str]:
    """The licences a checkpoint states, in its own words: `license` of its README.md's front matter, or, where that has
    none, of its config.json. `license: other` stands for `license_name`, if there is one."""
    card = _front_matter(checkpoint / "README.md")
    named = _words(card, "license")
    if named == ["other"]:
        named = _words(card, "license_name") or named
    if named or not (checkpoint / "config.json").is_file():
        return named
    config = read_json(checkpoint / "config.json")
    licence = config.get("license") if isinstance(config, dict) else None
    return [licence] if licence and isinstance(licence, str) else []


def _front_matter(path: Path) -> str:
    """The YAML at the top of a model card; nothing of what is no card."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        head = file.read(_FRONT_MATTER_LIMIT).decode(errors="replace").replace("\r\n", "\n")
    card = re.match(r"---\n(.*?)\n---(\n|$)", head, re.DOTALL)
    return card[1] if card else ""


def _words(card: str, key: str) -> list[str]:
    """The text, or the texts of the list, that a key at the top has. Only its lines are parsed, and only to YAML's
    nodes: what a stranger writes around them costs nothing."""
    lines = re.search(rf"^{key}:.*(\n[ \t-].*)*", card, re.MULTILINE)
    try:
        node = yaml.compose(lines[0][:_ENTRY_LIMIT], yaml.SafeLoader) if lines else None
    except (yaml.YAMLError, RecursionError):
        return []
    if not isinstance(node, yaml.MappingNode):
        return []
    (_, value), *_ = node.value
    nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
    return [word.value for word in nodes if isinstance(word, yaml.ScalarNode) and word.tag == _TEXT and word.value]
