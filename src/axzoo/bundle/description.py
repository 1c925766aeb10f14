"""The tables that `axzoo inspect` prints. All strings from the file are printed as plain text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.backends.host.container import Header
from axzoo.backends.host.inspection import Inspection
from axzoo.backends.pulsar2.table_outline import TableOutline
from axzoo.backends.pulsar2.vendor_file import VendorFile
from axzoo.bundle.manifest import MANIFEST, read_manifest
from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Provenance:
    """Where a compiled file comes from, according to its bundle's manifest.

    `part` is the file's entry in the manifest: its store key and weight format.
    """

    bundle: str
    backend: str
    source: Mapping[str, Any]
    recipe: Mapping[str, Any]
    part: Mapping[str, Any]


def read_provenance(file: Path) -> Provenance | str:
    """The provenance according to the manifest in the file's folder, or the reason why it is not known.

    The file is not hashed; `axzoo verify` does that.
    """
    if not (file.parent / MANIFEST).is_file():
        return "no manifest in its folder"
    try:
        manifest = read_manifest(file.parent)
    except AxzooError as error:
        return str(error)
    record = manifest.files.get(file.name)
    if record is None or file.name not in manifest.parts:
        return "the manifest in its folder does not list it"
    if record.size != file.stat().st_size:
        return f"the manifest in its folder lists a different file with this name, of {record.size} bytes"
    return Provenance(
        manifest.name, manifest.backend, manifest.source, asdict(manifest.recipe), manifest.parts[file.name]
    )


MAX_TENSORS = 24
"""About the number of tensors in a decoder layer. Of files with more, only the largest tensors are shown."""
_MAX_CHARACTERS = 400
_NUMBERS = ("elements", "bytes", "tensors", "error")


def tables(found: Inspection, provenance: Provenance | str) -> list[Table]:
    """Tables of the file's properties, provenance, shape groups, tensors, and totals by dtype."""
    groups = _groups(found.header) if found.header else _graph(found)
    return [_properties(found), _provenance(provenance), groups, _tensors(found), _totals(found)]


def vendor_tables(found: VendorFile, known: TableOutline, provenance: Provenance | str) -> list[Table]:
    """Tables of a file of the vendor's compiler: properties, provenance, and shape groups."""
    rows = [
        ("file", str(found.path)),
        ("size", f"{found.size} bytes ({found.size / 1e6:.1f} MB)"),
        ("built by", f"the vendor's compiler, {found.version or 'of unknown version'}"),
        ("programs", f"{len(found.groups)}, {sum(group.program_bytes for group in found.groups)} bytes"),
        ("weight table", f"{len(found.table)} bytes, from byte {found.offset}"),
        ("weights", str(known)),
    ]
    groups = [
        (str(index), side, tensor.name, tensor.dtype, _shape(tensor.shape), f"{group.program} ({group.program_bytes})")
        for index, group in enumerate(found.groups)
        for side, tensors in (("in", group.inputs), ("out", group.outputs))
        for tensor in tensors
    ]
    columns = ("group", "", "name", "dtype", "shape", "program (bytes)")
    return [
        _table(("", ""), rows, title=None),
        _provenance(provenance),
        _table(columns, groups, title="shape groups"),
    ]


def _provenance(provenance: Provenance | str) -> Table:
    if isinstance(provenance, str):
        return _table(("", ""), [("provenance", provenance)], title=None)
    part = {key: value for key, value in provenance.part.items() if key != "weight_errors"}
    rows = [("bundle", provenance.bundle), ("backend", provenance.backend)]
    for what, facts in (("source", provenance.source), ("recipe", provenance.recipe), ("this file", part)):
        rows += [(f"{what}: {key}", _text(value)) for key, value in facts.items()]
    return _table(("", ""), rows, title="provenance, according to the manifest")


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
        rows.append(("external", f"{external} tensors have their data in other files"))
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
    for tensor in largest[:MAX_TENSORS]:
        error = found.error(tensor)
        shown_error = "" if error is None else f"{error:.5f}"
        rows.append((tensor.name, tensor.dtype, _shape(tensor.shape), str(tensor.bytes), shown_error))
    title = "tensors" if len(rows) == len(largest) else f"{len(rows)} largest tensors"
    return _table(("name", "dtype", "shape", "bytes", "error"), rows, title=title)


def _totals(found: Inspection) -> Table:
    totals = found.by_dtype()
    rows = [
        (dtype, str(entry["tensors"]), str(entry["elements"]), str(entry["bytes"])) for dtype, entry in totals.items()
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
    """`text`, truncated if it is long, with control characters escaped."""
    shown = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
