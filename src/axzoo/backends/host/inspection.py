"""What an .axmodel, or any ONNX file, declares, read without its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.backends.host.container import METADATA_KEY, Header, parse_header
from axzoo.backends.host.contract import declares
from axzoo.backends.host.outline import Outline, Stored, read_outline
from axzoo.core.errors import AxzooError
from axzoo.parts.groups import ShapeGroup

if TYPE_CHECKING:
    pass


_LEARNED = (".weight", ".bias")
"""How axzoo's initializers end that hold the model's own parameters; the others are scales and tables."""


@dataclass(frozen=True)
class Inspection:
    """A file's outline, and the header axzoo gave it: None where another tool wrote the file."""

    path: Path
    outline: Outline
    header: Header | None

    @property
    def parameters(self) -> int | None:
        """The model's parameters in the file; unknown of another tool's."""
        if self.header is None:
            return None
        return sum(math.prod(tensor.shape) for tensor in self.outline.tensors if tensor.name.endswith(_LEARNED))

    def error(self, tensor: Stored) -> float | None:
        """The relative L2 error that storing a weight matrix made, where the file tells it."""
        errors: dict[str, float] = self.header.about.get("weight_errors", {}) if self.header else {}
        role, end, _ = tensor.name.rpartition(".weight")
        return errors.get(role) if end else None

    def by_dtype(self) -> dict[str, dict[str, int]]:
        """Count of tensors, their elements and bytes, by dtype; the largest first."""
        sums: dict[str, dict[str, int]] = {}
        for tensor in self.outline.tensors:
            entry = sums.setdefault(tensor.dtype, {"tensors": 0, "elements": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["elements"] += math.prod(tensor.shape)
            entry["bytes"] += tensor.bytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]["bytes"]))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data. Of the metadata, whose values can be long, the sizes in bytes."""
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
    """Raises AxzooError when the file is missing, no ONNX model, or damaged."""
    outline = read_outline(path)
    metadata = outline.metadata.get(METADATA_KEY)
    header = None if metadata is None else parse_header(metadata, path)
    if header is not None and not _is_plain(header):
        raise AxzooError(f"{path} has damaged {METADATA_KEY!r} metadata: build it again")
    return Inspection(path, outline, header)


def _is_plain(header: Header) -> bool:
    """Whether what the header says is of the types axzoo writes."""
    names = [tensor.name for group in header.groups for tensor in (*group.inputs, *group.outputs)]
    unused = [name for group in header.groups for name in group.unused]
    if not isinstance(header.about, dict) or not all(isinstance(text, str) for text in (header.kind, *names, *unused)):
        return False
    errors = header.about.get("weight_errors", {})
    return isinstance(errors, dict) and all(type(error) is float and math.isfinite(error) for error in errors.values())


_HEADER_KINDS = {"layer": "decoder_layer", "post": "post"}
"""By part kind, the kind that a file's header states."""


def contradictions(path: Path, kind: str, groups: tuple[ShapeGroup, ...], about: Mapping[str, Any]) -> Iterator[str]:
    """What the file declares otherwise than a part of that kind with those shape groups, and with the choices `about`
    of its manifest entry."""
    found = inspect_file(path)
    if found.header is None:
        yield f"{path.name} was not built by axzoo"
        return
    if found.header.kind != _HEADER_KINDS[kind]:
        yield f"{path.name} is a {found.header.kind!r}, not a {_HEADER_KINDS[kind]!r}"
    if found.header.groups != groups:
        yield f"{path.name} has other shape groups than the manifest's spec and recipe ask for"
    if any(about.get(key, value) != value for key, value in found.header.about.items()):
        yield f"{path.name} records other choices than its manifest entry"
    if not all(declares(found.outline, group) for group in groups):
        yield f"{path.name} declares other inputs or outputs than its shape groups have"
