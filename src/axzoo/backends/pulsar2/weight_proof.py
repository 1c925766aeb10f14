"""Whether a vendor's file holds a checkpoint's weights, and which layer's it holds if not the right one's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.pulsar2.block_comparison import MISSING
from axzoo.backends.pulsar2.matrix_search import FoundMatrix, StorageForm
from axzoo.backends.pulsar2.row_blocks import ROWS
from axzoo.backends.pulsar2.vendor_file import read_vendor_file
from axzoo.backends.pulsar2.weight_table import ConstantRun, TableReading, read_table
from axzoo.parts.kind import RowReader

ORDER = (
    "input_norm", "v_proj", "k_proj", "k_norm", "q_proj", "q_norm", "o_proj", "mlp_norm", "gate_proj", "up_proj",
    "down_proj", "norm", "lm_head",
)  # fmt: skip
"""The order of tensors in all known tables, by the start of their first block."""


@dataclass(frozen=True)
class WeightProof:
    """What is known of the weights in a file.

    `form` is how its matrices are stored, such as "s8, rule A, 32 rows per block". `faults` say how the file differs
    from the given weights, `unknown` what cannot be compared because no published file shows it, `notes` what the file
    cannot show. `constants` are the bytes of the table that hold none of the weights.
    """

    file: str
    form: str
    blocks: int
    faults: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]
    constants: tuple[ConstantRun, ...]

    @property
    def proven(self) -> bool:
        """Whether every code, scale and norm in the file is that of the given weights."""
        return not self.faults and not self.unknown

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain JSON values, for manifests and reports."""
        return {
            "proven": self.proven,
            "form": self.form,
            "blocks": self.blocks,
            "faults": list(self.faults),
            "unknown": list(self.unknown),
            "notes": list(self.notes),
            "constant_bytes": sum(run.length for run in self.constants),
        }


def prove_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], read: RowReader, weight_type: str | None = None
) -> WeightProof:
    """Compares a file with tensors by role: those of a layer, of a post layer, or of a slice whose weights calibration
    chose. `weight_type` is the type that its matrices must have; None accepts any. Raises AxzooError when the file is
    damaged."""
    reading = read_table(read_vendor_file(path).table, shapes, read)
    unknown, faults = list(reading.unknown), []
    for fault in reading.all_faults:
        role, _, text = fault.partition(" ")
        beside_bias = role.removesuffix("weight") + "bias" in shapes and "bytes that are not 0" in text
        if role.endswith(".bias") or beside_bias:
            unknown.append(f"{fault}: no published file shows where biases are")
        else:
            faults.append(fault)
    faults += order_faults(reading)
    form = _form_text([found.form for found in reading.matrices.values() if found.form])
    types = {kind for found in reading.matrices.values() for kind in _types(found)}
    common = [kind for kind in types if all(kind in _types(found) for found in reading.matrices.values() if found.form)]
    if types and not common:
        faults.append(f"its matrices are stored in different types: {form}")
    if common and weight_type is not None and weight_type not in common:
        faults.append(f"its weights are stored as {common[0]} instead of {weight_type}")
    blocks = sum(int((found.offsets != MISSING).sum()) for found in reading.matrices.values())
    notes = tuple(_notes(reading))
    return WeightProof(path.name, form, blocks, tuple(faults), tuple(unknown), notes, reading.constants)


def _form_text(forms: Sequence[StorageForm]) -> str:
    """How matrices are stored, such as "s4, rule A, 32 or 64 rows per block"."""
    rows: dict[str, set[int]] = {}
    for form in forms:
        rows.setdefault(form.numerics, set()).add(form.layout.rows)
    texts = [f"{what}, {' or '.join(map(str, sorted(sizes)))} rows per block" for what, sizes in sorted(rows.items())]
    return "; ".join(texts)


def _types(found: FoundMatrix) -> tuple[str, ...]:
    return (found.form.layout.weight_type, *found.form.equal_types) if found.form else ()


def order_faults(reading: TableReading) -> Iterator[str]:
    """Rows and tensors that are not where all known tables have them. Blocks and norms that are stored once for several
    are left out."""
    claims = [offset for found in reading.matrices.values() for offset in found.offsets.tolist()]
    places, counts = np.unique(np.array(claims, np.int64), return_counts=True)
    single = set(places[counts == 1].tolist()) - {MISSING}
    starts: dict[str, tuple[str, int]] = {}
    for role, found in reading.matrices.items():
        own = [offset for offset in found.offsets.tolist() if offset in single]
        if own != sorted(own):
            yield f"{role} has blocks of rows in another order"
        if own and own[0] == found.offsets[0]:
            starts[role.rpartition(".")[0]] = role, own[0]
    vectors = Counter(vector.offset for vector in reading.vectors.values())
    for role, vector in reading.vectors.items():
        if vector.offset is not None and vectors[vector.offset] == 1:
            starts[role.rpartition(".")[0]] = role, vector.offset
    present = [starts[name] for name in ORDER if name in starts]
    for (role, offset), (after, next_offset) in pairwise(present):
        if offset > next_offset:
            yield f"{role} comes after {after}, and in all known files before it"


def _notes(reading: TableReading) -> Iterator[str]:
    for role, vector in reading.vectors.items():
        if vector.offset is None and vector.fault is None:
            yield f"{role} is all ones, which files leave out: nothing in the file shows it"
    for role, found in reading.matrices.items():
        if found.ties:
            yield f"{role} has {found.ties} codes that another arithmetic rounds to the other side of a tie"
        if found.other_signs:
            yield f"{role} has {found.other_signs} scales with the sign of another of their largest weights"
        if found.zero_rows:
            yield f"{role} has {found.zero_rows} rows of zeros, whose scale means nothing"
    repeated = sum(
        len(found.offsets) - len(np.unique(found.offsets)) for found in reading.matrices.values() if not found.faults
    )
    if repeated:
        yield f"{repeated} blocks of rows are stored once for several"


SAMPLE = 2 * ROWS
"""Rows of each matrix from which `layers_in` recognizes a layer."""


def layers_in(table: memoryview, samples: Mapping[int, Mapping[str, NDArray[np.float32]]]) -> dict[str, list[int]]:
    """The layers whose rows are in a table, by role. `samples` are the first SAMPLE rows, or 32 of matrices that have
    fewer, of the matrices of each layer."""
    rows = {(index, role): weight for index, matrices in samples.items() for role, weight in matrices.items()}
    by_name = {f"{index} {role}": weight for (index, role), weight in rows.items()}
    reading = read_table(table, {name: weight.shape for name, weight in by_name.items()}, lambda name: [by_name[name]])
    found: dict[str, list[int]] = {}
    for index, role in rows:
        if reading.matrices[f"{index} {role}"].equal:
            found.setdefault(role, []).append(index)
    return found
