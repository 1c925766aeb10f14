"""Reads what an .axmodel or any other ONNX file declares, without its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axzoo.backends.host.container import METADATA_KEY, Header, parse_header
from axzoo.backends.host.contract import declares
from axzoo.backends.host.outline import Initializer, Outline, read_outline
from axzoo.core.errors import AxzooError
from axzoo.parts.groups import ShapeGroup

_PARAMETER_SUFFIXES = (".weight", ".bias")
"""Suffixes of the initializers that hold model parameters; others are scales and tables."""


@dataclass(frozen=True)
class Inspection:
    """A file's outline, and its header: None if another tool wrote the file."""

    path: Path
    outline: Outline
    header: Header | None

    @property
    def parameters(self) -> int | None:
        """The number of model parameters in the file; None if another tool wrote the file."""
        if self.header is None:
            return None
        tensors = [tensor for tensor in self.outline.tensors if tensor.name.endswith(_PARAMETER_SUFFIXES)]
        return sum(math.prod(tensor.shape) for tensor in tensors)

    def error(self, tensor: Initializer) -> float | None:
        """The relative L2 quantization error of a weight matrix, if the file records it."""
        errors: dict[str, float] = self.header.about.get("weight_errors", {}) if self.header else {}
        role, end, _ = tensor.name.rpartition(".weight")
        return errors.get(role) if end else None

    def by_dtype(self) -> dict[str, dict[str, int]]:
        """The number of tensors, elements and bytes by dtype, in descending order of bytes."""
        sums: dict[str, dict[str, int]] = {}
        for tensor in self.outline.tensors:
            entry = sums.setdefault(tensor.dtype, {"tensors": 0, "elements": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["elements"] += math.prod(tensor.shape)
            entry["bytes"] += tensor.bytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]["bytes"]))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data. Metadata values can be long, so only their sizes in bytes are included."""
        tensors = [asdict(tensor) | {"error": self.error(tensor)} for tensor in self.outline.tensors]
        metadata = {key: len(value.encode()) for key, value in self.outline.metadata.items()}
        return {
            "file": str(self.path),
            "header": None if self.header is None else asdict(self.header),
            "parameters": self.parameters,
            "by_dtype": self.by_dtype(),
            **asdict(self.outline),
            "tensors": tensors,
            "metadata": metadata,
        }


def inspect_file(path: Path) -> Inspection:
    """Inspects a file. Raises AxzooError when it is missing, damaged or not an ONNX model."""
    outline = read_outline(path)
    metadata = outline.metadata.get(METADATA_KEY)
    header = None if metadata is None else parse_header(metadata, path)
    if header is not None and not _has_valid_types(header):
        raise AxzooError(f"{path} has damaged {METADATA_KEY!r} metadata: build it again")
    return Inspection(path, outline, header)


def _has_valid_types(header: Header) -> bool:
    """Whether the header's values have the types that axzoo writes."""
    names = [tensor.name for group in header.groups for tensor in (*group.inputs, *group.outputs)]
    unused = [name for group in header.groups for name in group.unused]
    if not isinstance(header.about, dict) or not all(isinstance(text, str) for text in (header.kind, *names, *unused)):
        return False
    errors = header.about.get("weight_errors", {})
    return isinstance(errors, dict) and all(type(error) is float and math.isfinite(error) for error in errors.values())


_HEADER_KINDS = {"layer": "decoder_layer"}
"""The kind in a file's header, for part kinds whose name differs from it."""


def contradictions(path: Path, kind: str, groups: tuple[ShapeGroup, ...], about: Mapping[str, Any]) -> Iterator[str]:
    """Yields a message for each contradiction between a file and its part kind, its shape groups, or its manifest
    entry `about`."""
    found = inspect_file(path)
    if found.header is None:
        yield f"{path.name} was not built by axzoo"
        return
    expected = _HEADER_KINDS.get(kind, kind)
    if found.header.kind != expected:
        yield f"{path.name} is a {found.header.kind!r}, not a {expected!r}"
    if found.header.groups != groups:
        yield f"{path.name} has shape groups that do not match the manifest's spec and recipe"
    if any(about.get(key, value) != value for key, value in found.header.about.items()):
        yield f"{path.name} has metadata that does not match its manifest entry"
    if not all(declares(found.outline, group) for group in groups):
        yield f"{path.name} has inputs or outputs that do not match its shape groups"
