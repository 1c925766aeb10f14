"""An inspection as tables. Everything that comes out of the file is shown as plain text, whatever it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.backends.host.container import METADATA_KEY, Header, parse_header
from axzoo.backends.host.outline import Outline, Stored, read_outline
from axzoo.bundle.manifest import MANIFEST, read_manifest
from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json

if TYPE_CHECKING:
    from rich.table import Table


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


MOST_TENSORS = 24
"""A decoder layer has about as many. Of other files, which may have thousands, the largest are shown."""
_MOST_CHARACTERS = 400
_NUMBERS = ("elements", "bytes", "tensors", "error")


def tables(found: Inspection, provenance: Provenance | str) -> list[Table]:
    """What the file is and where it comes from, its shape groups, its tensors, and their sums by dtype."""
    groups = _groups(found.header) if found.header else _graph(found)
    return [_properties(found), _provenance(provenance), groups, _tensors(found), _sums(found)]


def _provenance(provenance: Provenance | str) -> Table:
    if isinstance(provenance, str):
        return _table(("", ""), [("provenance", provenance)], title=None)
    part = {key: value for key, value in provenance.part.items() if key != "weight_errors"}
    rows = [("bundle", provenance.bundle)]
    for what, facts in (("source", provenance.source), ("recipe", provenance.recipe), ("this file", part)):
        rows += [(f"{what}: {key}", _text(value)) for key, value in facts.items()]
    return _table(("", ""), rows, title="provenance, by the manifest beside it")


def _text(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _properties(found: Inspection) -> Table:
    outline, header = found.outline, found.header
    version = f"{outline.producer_name} {outline.producer_version}".strip() or "an unnamed tool"
    opsets = ", ".join(f"{domain or 'ONNX'} {number}" for domain, number in outline.opsets.items())
    rows = [
        ("file", str(found.path)),
        ("size", f"{outline.size} bytes ({outline.size / 1e6:.1f} MB)"),
        ("built by", version if header else f"{version}; not by axzoo"),
        ("IR version", str(outline.ir_version)),
        ("opsets", opsets),
        ("operators", ", ".join(f"{count} {name}" for name, count in outline.operators.items())),
    ]
    if outline.doc_string:
        rows.append(("description", outline.doc_string))
    if header:
        rows.append(("kind", header.kind))
        about = {key: value for key, value in header.about.items() if key != "weight_errors"}
        rows += [(key, _text(value)) for key, value in about.items()]
        rows.append(("parameters", str(found.parameters)))
    else:
        keys = ", ".join(f"{key} ({len(value)} characters)" for key, value in outline.metadata.items())
        rows.append(("metadata", keys or "none"))
    external = sum(tensor.external for tensor in outline.tensors)
    if external:
        rows.append(("elsewhere", f"the values of {external} tensors, in other files"))
    return _table(("", ""), rows, title=None)


def _groups(header: Header) -> Table:
    rows = []
    for index, group in enumerate(header.groups):
        stage = ("decode" if index == 0 else "prefill") if header.kind == "decoder_layer" else ""
        for direction, tensors in (("in", group.inputs), ("out", group.outputs)):
            for tensor in tensors:
                unused = "unused" if tensor.name in group.unused else ""
                rows.append((f"{index} {stage}", direction, tensor.name, tensor.dtype, _shape(tensor.shape), unused))
    return _table(("group", "", "name", "dtype", "shape", ""), rows, title="shape groups")


def _graph(found: Inspection) -> Table:
    sides = (("in", found.outline.inputs), ("out", found.outline.outputs))
    rows = [(way, value.name, value.dtype, _shape(value.shape)) for way, values in sides for value in values]
    return _table(("", "name", "dtype", "shape"), rows, title="inputs and outputs of the graph")


def _tensors(found: Inspection) -> Table:
    largest = sorted(found.outline.tensors, key=lambda tensor: -tensor.bytes)
    rows = []
    for tensor in largest[:MOST_TENSORS]:
        error = found.error(tensor)
        words = "" if error is None else f"{error:.5f}"
        rows.append((tensor.name, tensor.dtype, _shape(tensor.shape), str(tensor.bytes), words))
    title = "tensors" if len(rows) == len(largest) else f"{len(rows)} largest tensors"
    return _table(("name", "dtype", "shape", "bytes", "error"), rows, title=title)


def _sums(found: Inspection) -> Table:
    sums = found.by_dtype()
    rows = [
        (dtype, str(entry["tensors"]), str(entry["elements"]), str(entry["bytes"])) for dtype, entry in sums.items()
    ]
    return _table(("dtype", "tensors", "elements", "bytes"), rows, title="by dtype")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, title=title, title_justify="left", header_style="bold", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table


def _printable(text: str) -> str:
    """The text, its beginning if it is long, with what would move a terminal's cursor written as escapes."""
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
