"""Where a compiled file comes from: what the manifest beside it says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axzoo.errors import AxzooError
from axzoo.manifest import MANIFEST, read_manifest


@dataclass(frozen=True)
class Provenance:
    """The bundle's name and recipe, the checkpoint's source, and the file's own part of the manifest: its key in the
    store, and how its weights were stored."""

    bundle: str
    source: Mapping[str, Any]
    recipe: Mapping[str, Any]
    part: Mapping[str, Any]


def read_provenance(file: Path) -> Provenance | str:
    """What the manifest in the file's folder says of it, or why nobody knows. Its bytes are not hashed: `axzoo verify`
    does that."""
    if not (file.parent / MANIFEST).is_file():
        return "no manifest beside it"
    try:
        manifest = read_manifest(file.parent)
    except AxzooError:
        return "the manifest beside it is damaged"
    record = manifest.files.get(file.name)
    if record is None or file.name not in manifest.parts:
        return "the manifest beside it does not list it"
    if record.size != file.stat().st_size:
        return f"the manifest beside it lists another file of this name, of {record.size} bytes"
    return Provenance(manifest.name, manifest.source, asdict(manifest.recipe), manifest.parts[file.name])
