"""A bundle's manifest.json, read: what the bundle is, and every file it is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, require_format
from axzoo.model.spec import DecoderSpec, SpecError
from axzoo.parts.kind import PartId
from axzoo.weights.recipe import Recipe

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2
"""Raised when a reader of today's manifests could not use tomorrow's; a new field with a default does not need it."""
CHECKS = "checks"
CHECK_NAMES = ("layers.json", "layers.log", "generation.json", "generation.log")
"""The folder and the files of the checks that `llm_build` leaves in a bundle; the manifest does not list them."""
MANIFEST_LIMIT = 8 << 20
"""Bytes; the largest known, of 80 layers, has 64 KB."""

_FILE_NAME = re.compile(r"(tokenizer/)?(?!tokenizer$|manifest\.json$)[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_BUNDLE_NAME = re.compile(r"[^\x00-\x1f/]{1,150}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and its sha256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle is and how it was built.

    `files` has every file by its name in the bundle but the manifest itself, `parts` the key of each part and what else
    is known about it. Manifests of format 1 state no model, backend, kinds and indices: `model` is None then, and
    `part_ids` is empty.
    """

    name: str
    model: str | None
    chip: str
    backend: str
    spec: DecoderSpec
    recipe: Recipe
    source: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    parts: Mapping[str, Mapping[str, Any]]
    part_ids: Mapping[str, PartId]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(record.size for record in self.files.values())


def read_manifest(folder: Path) -> Manifest:
    """Reads a bundle's manifest. Raises AxzooError when it is missing, damaged or of a newer version."""
    if folder.is_file():
        raise AxzooError(f"{folder} is a file: name a bundle's folder; `axzoo unpack` makes one of an archive")
    path = folder / MANIFEST
    return parse_manifest(read_json(path, MANIFEST_LIMIT), path)


def parse_manifest(data: Any, path: Path) -> Manifest:
    """The manifest that `path` holds as `data`, parsed JSON. Every file's name is one inside the bundle.

    A field that older versions did not write has its default. Raises AxzooError when the manifest is damaged, or of a
    newer format than this axzoo reads.
    """
    number = require_format(data, MANIFEST_FORMAT, path, "build the bundle again")
    try:
        spec = DecoderSpec.from_dict(data["spec"])
        _check_numbers(spec)
        parts = {name: dict(part) for name, part in data["parts"].items()}
        return Manifest(
            name=_matching(_BUNDLE_NAME, data["name"]),
            model=None if number == 1 else _matching(_BUNDLE_NAME, data["model"]),
            chip=_matching(_BUNDLE_NAME, data["chip"]),
            backend="host" if number == 1 else _matching(_BUNDLE_NAME, data["backend"]),
            spec=spec,
            recipe=Recipe.from_dict(data["recipe"]),
            source=dict(data["source"]),
            files={_matching(_FILE_NAME, name): _record(record) for name, record in data["files"].items()},
            parts=parts,
            part_ids={} if number == 1 else {name: PartId.from_dict(part) for name, part in parts.items()},
        )
    except SpecError as error:
        raise AxzooError(f"{path}: {error}") from None
    except AxzooError as error:
        raise AxzooError(f"{path}: {error}. Build the bundle again, or use the axzoo that built it") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AxzooError(f"{path} is damaged ({error!r:.200}): build the bundle again") from None


def _record(data: Any) -> FileRecord:
    size = data["size"]
    if type(size) is not int or size < 0:
        raise ValueError(f"size {size!r}")
    return FileRecord(size, _matching(_SHA256, data["sha256"]))


def _matching(pattern: re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text) or text in (".", ".."):
        raise ValueError(text)
    return text


def _check_numbers(spec: Any) -> None:
    """Lengths are multiplied with each other: a text among them would be repeated."""
    types = get_type_hints(type(spec))
    for member in fields(spec):
        value = getattr(spec, member.name)
        if is_dataclass(value):
            _check_numbers(value)
        elif types[member.name] is int and type(value) is not int:
            raise TypeError(f"{member.name} {value!r:.80}")
