"""Reading manifest.json, which describes a bundle and lists its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, require_format
from axzoo.model.spec import MAX_LAYERS, DecoderSpec, SpecError
from axzoo.parts.kind import PartId
from axzoo.weights.recipe import Recipe

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2
"""Increase this when older readers cannot use new manifests. A new field with a default does not require it."""
CHECKS = "checks"
CHECK_NAMES = ("layers.json", "layers.log", "generation.json", "generation.log")
"""Folder and file names of the check results that `llm_build` writes next to a bundle; not listed in the manifest."""
MANIFEST_LIMIT = 8 << 20
"""Maximum size in bytes. The largest known manifest, of a model with 80 layers, has 64 KB."""

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

    `files` maps the names of all files except the manifest to size and sha256; `parts` maps the names of the compiled
    parts to their store key, weight format and errors. Manifests of format 1 contain no model, backend, kinds or
    indices: for them `model` is None, `backend` is "host" and `part_ids` is empty.
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
        """Total size of all files in bytes."""
        return sum(record.size for record in self.files.values())


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest. Raises AxzooError when it is missing, damaged or of a newer format."""
    if folder.is_file():
        raise AxzooError(f"{folder} is a file: give the folder of a bundle; `axzoo unpack` extracts archives")
    path = folder / MANIFEST
    return parse_manifest(read_json(path, MANIFEST_LIMIT), path)


def parse_manifest(data: Any, path: Path) -> Manifest:
    """Parse the JSON value `data`, which was read from `path`.

    File names that lead outside the bundle are rejected. Fields that older versions did not write get their defaults.
    Raises AxzooError when the manifest is damaged or of a newer format.
    """
    number = require_format(data, MANIFEST_FORMAT, path, "build the bundle again")
    try:
        spec = DecoderSpec.from_dict(data["spec"])
        _check_numbers(spec)
        if not 1 <= spec.num_hidden_layers <= MAX_LAYERS:
            raise ValueError(f"num_hidden_layers {spec.num_hidden_layers}")
        parts = {name: dict(part) for name, part in data["parts"].items()}
        files = {_matching(_FILE_NAME, name): _record(record) for name, record in data["files"].items()}
        if strangers := sorted(parts.keys() - files.keys()):
            raise ValueError(f"part {strangers[0]!r:.80} is not among the files")
        ids = {} if number == 1 else {name: PartId.from_dict(part) for name, part in parts.items()}
        if len(set(ids.values())) < len(ids):
            raise ValueError("two files are the same part")
        return Manifest(
            name=_matching(_BUNDLE_NAME, data["name"]),
            model=None if number == 1 else _matching(_BUNDLE_NAME, data["model"]),
            chip=_matching(_BUNDLE_NAME, data["chip"]),
            backend="host" if number == 1 else _matching(_BUNDLE_NAME, data["backend"]),
            spec=spec,
            recipe=Recipe.from_dict(data["recipe"]),
            source=dict(data["source"]),
            files=files,
            parts=parts,
            part_ids=ids,
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
    """Raise TypeError when an int field is not an int: in later multiplications, a string would be repeated."""
    types = get_type_hints(type(spec))
    for member in fields(spec):
        value = getattr(spec, member.name)
        if is_dataclass(value):
            _check_numbers(value)
        elif types[member.name] is int and type(value) is not int:
            raise TypeError(f"{member.name} {value!r:.80}")
