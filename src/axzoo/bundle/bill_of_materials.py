"""The software bill of materials of a bundle: a CycloneDX 1.6 document inside the manifest.

Format: https://cyclonedx.org/docs/1.6/json. The document has no serial number or timestamp, so equal inputs and
versions give equal bytes on any machine. Packages have no hashes, because their installed files differ between
platforms.
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
from axzoo.core.files import has_file, open_regular, read_json
from axzoo.weights.formats import is_calibrated
from axzoo.weights.recipe import Recipe

_LIBRARIES = ("gguf", "ml_dtypes", "numpy", "onnx", "safetensors", "tokenizers")
"""Packages that influence the bytes of a bundle."""
_FRONT_MATTER_LIMIT = 64 << 10
_ENTRY_LIMIT = 1000

_TEXT = "tag:yaml.org,2002:str"

Component = dict[str, Any]


def bill_of_materials(receipt: Mapping[str, Any], checkpoint: Path, recipe: Recipe) -> dict[str, Any]:
    """The document as plain JSON values.

    `receipt` is the parsed source.json, `checkpoint` the folder with the files it lists. Raises AxzooError when the
    receipt is damaged.
    """
    try:
        files = {str(name): record.get("sha256") for name, record in receipt["files"].items()}
        read = [*files, *receipt.get("converted_from", {}).get("files", ())]
        model = _model(receipt["source"], files, licences(checkpoint))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise AxzooError(f"source.json of {checkpoint} is damaged ({error!r}): fetch the checkpoint again") from None
    python = platform.python_version()
    torch = is_calibrated(recipe) or any(name.endswith(".bin") for name in read)
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
    """The checkpoint as a component. Files without a hash are omitted: the keys of the parts cover their tensors."""
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
    """A package from PyPI. Its purl contains the name as normalized by PEP 503."""
    return _component(kind, name, version, f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{_quoted(version)}")


def _component(kind: str, name: str, version: str, purl: str) -> Component:
    return {"type": kind, "name": name, "version": version, "purl": purl}


def _quoted(version: str) -> str:
    return quote(version, safe="")


def licences(checkpoint: Path) -> list[str]:
    """The licences that a checkpoint states, verbatim.

    They are read from `license` in the front matter of README.md, or else in config.json. For `license: other` the
    result is `license_name`, if present.
    """
    card = _front_matter(checkpoint / "README.md")
    named = _strings(card, "license")
    if named == ["other"]:
        named = _strings(card, "license_name") or named
    if named or not has_file(checkpoint / "config.json"):
        return named
    config = read_json(checkpoint / "config.json")
    licence = config.get("license") if isinstance(config, dict) else None
    return [licence] if licence and isinstance(licence, str) else []


def _front_matter(path: Path) -> str:
    """The YAML at the top of a model card; "" if the file is missing or has no front matter."""
    if not has_file(path):
        return ""
    with open_regular(path) as file:
        head = file.read(_FRONT_MATTER_LIMIT).decode(errors="replace").replace("\r\n", "\n")
    card = re.match(r"---\n(.*?)\n---(\n|$)", head, re.DOTALL)
    return card[1] if card else ""


def _strings(card: str, key: str) -> list[str]:
    """The string, or list of strings, under a top-level key.

    Only the lines of this key are parsed, and only into YAML nodes, so the rest of an untrusted card costs nothing.
    """
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
