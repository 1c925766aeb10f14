"""Whether the weights stored in a file are those of the locked checkpoint.

Every tensor is compared with the checkpoint's by a bound that follows from its format alone: see docs/checks.md. The
checkpoint's weights are compared block by block while the oracle multiplies with them, so they are read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from axzoo.backends.host.contents import FileContents
from axzoo.check.stored_weights import scale_name, scales_of
from axzoo.model.oracle import StreamedWeights, Weights

SLACK = 1e-3
"""Added to half a step, for the rounding of fp32 arithmetic."""

SCALE_ERROR = 1e-5
"""Relative error of a scale that is a quotient of fp32 numbers."""

MSE_SCALES = (0.05, 1.3)
"""Scales of the mse rule, relative to the vendor's. SmolLM2-135M has 0.17 to 1.11: inputs that calibration finds
unimportant may be clipped."""

CALIBRATED_ERROR = 8.0
"""L2 error of a row whose rounding is calibrated, relative to the expected error of rounding to the nearest, with the
vendor's scales. SmolLM2-135M has up to 3.8."""

RECORDED_ERROR = 2e-6
"""Relative difference between the error of a calibrated matrix and the one that its file records. SmolLM2-135M has
2e-8; a single wrong code of a million gives 7e-6."""


@dataclass(frozen=True)
class Codes:
    """Integers from `lowest` to `highest`, whose vendor scale is the largest magnitude of a row divided by `levels`."""

    lowest: int
    highest: int
    levels: int


@dataclass(frozen=True)
class Float8:
    """fp8 with scales. `step` is half a unit of the mantissa, relative to the value; `smallest` half of the smallest
    number; `largest` divides the largest magnitude of a row."""

    step: float
    smallest: float
    largest: float


LAYER_CODES = {"s8": Codes(-128, 127, 128), "s4": Codes(-8, 7, 8)}
POST_CODES = {"s8": Codes(-127, 127, 127)}
FLOAT8 = {
    "fp8_e4m3": Float8(2.0**-4, 2.0**-10, 448.0),
    "fp8_e5m2": Float8(2.0**-3, 2.0**-17, 57344.0),
}
_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BLOCK = 1 << 19
"""Weights that are compared at a time: few enough to stay in the CPU cache."""

_DTYPE_OF = {"s8": "int8", "s4": "int4"}


@dataclass(frozen=True)
class Storage:
    """How a file's matrices must be stored: weight type, the form of its codes, group size, and whether the scales or
    the codes deviate from the vendor's rules."""

    weight_type: str
    codes: Codes | None
    group_size: int = 0
    searched_scales: bool = False
    calibrated: bool = False


class ComparedWeights(StreamedWeights):
    """The checkpoint's weights `wanted`, fp32 by role. Whatever is read is compared with the same rows of the file."""

    def __init__(self, contents: FileContents, wanted: Weights, storage: Storage) -> None:
        self._contents, self._wanted, self._storage = contents, wanted, storage
        stored = [name for name in contents.tensors if name.endswith((".weight", ".bias"))]
        missing = {role: "is not in the file" for role in wanted if role not in stored}
        self._unusable = missing | {
            role: "is in the file, but not in the checkpoint" for role in stored if role not in wanted
        }
        for role in wanted:
            problem = role not in missing and self._layout_fault(role)
            if problem:
                self._unusable[role] = problem
        self._found: dict[str, str | None] = dict(self._unusable)

    def __getitem__(self, role: str) -> Tensor:
        return torch.cat(list(self.rows(role)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)

    def rows(self, role: str) -> Iterator[Tensor]:
        blocks = self._wanted.rows(role) if isinstance(self._wanted, StreamedWeights) else iter([self._wanted[role]])
        if role in self._found:
            yield from blocks
            return
        comparison = _Comparison(self._contents, role, self._storage)
        for block in blocks:
            step = max(1, _BLOCK // max(1, block[0].numel()))
            for start in range(0, len(block), step):
                comparison.add(block[start : start + step])
            yield block
        self._found[role] = comparison.fault()

    def shape(self, role: str) -> tuple[int, ...]:
        return (
            self._wanted.shape(role) if isinstance(self._wanted, StreamedWeights) else tuple(self._wanted[role].shape)
        )

    @property
    def parameters(self) -> int:
        return sum(math.prod(self.shape(role)) for role in self)

    @property
    def is_usable(self) -> bool:
        """Whether the file has the checkpoint's tensors, stored as they must be, so that the oracle can run on them."""
        return not self._unusable

    def faults(self) -> list[str]:
        """The tensors of the file that are not those of the checkpoint, with the reason; empty if all are. What was not
        read so far is compared now."""
        for role in self:
            for _ in self.rows(role) if role not in self._found else ():
                pass
        return [f"{role} {fault}" for role, fault in self._found.items() if fault]

    def names(self) -> set[str]:
        """The names of the tensors that are compared: weights, biases and scales."""
        return {*self, *(scale_name(role) for role in self if role.endswith(".weight"))}

    def _layout_fault(self, role: str) -> str | None:
        """Why a tensor is not stored as `storage` says; None if it is."""
        tensor, shape = self._contents.tensors[role], self.shape(role)
        if tensor.shape != shape[::-1]:
            return f"has shape {list(tensor.shape)} instead of {list(shape[::-1])}"
        if len(shape) < 2:
            return None
        expected = _DTYPE_OF.get(self._storage.weight_type, self._storage.weight_type)
        if tensor.dtype != expected:
            return f"is stored as {tensor.dtype} instead of {expected}"
        scale = self._contents.tensors.get(scale_name(role))
        if expected in _TORCH:
            return None if scale is None else "has scales, but its type needs none"
        groups = shape[1] // self._storage.group_size if self._storage.group_size else 1
        layouts = [(groups, shape[0]), *([(shape[0],)] if groups == 1 else [])]
        if scale is None or scale.dtype != "fp32" or scale.shape not in layouts:
            return f"has no scales of shape {[groups, shape[0]]}"
        return None


class _Comparison:
    """Compares a tensor of a file with the checkpoint's, which is given in blocks of rows."""

    def __init__(self, contents: FileContents, role: str, storage: Storage) -> None:
        self._storage = storage
        self._values, self._scales = contents.tensors[role].array(), scales_of(contents, role)
        self._recorded = contents.header.about.get("weight_errors", {}).get(role.removesuffix(".weight"))
        self._start = 0
        self._wrong: list[Tensor] = []
        self._reason = ""
        self._squares = self._squared_error = 0.0

    def add(self, wanted: Tensor) -> None:
        """Compares the next rows of a matrix [rows, columns], or the next features of a vector [features]."""
        rows = slice(self._start, self._start + len(wanted))
        self._start = rows.stop
        if wanted.dim() < 2:
            wrong = torch.from_numpy(self._values[rows].astype(np.float32)) != wanted  # NaN differs
            reason = "differs from the checkpoint rounded to fp32"
        else:
            wrong, reason = self._wrong_rows(_transposed(self._values[:, rows]), rows, wanted)
        self._wrong.append(wrong)
        self._reason = self._reason or (reason if bool(wrong.any()) else "")

    def fault(self) -> str | None:
        """What is wrong with the tensor; None if nothing is."""
        if self._reason:
            return f"{self._reason} in {_rows_text(torch.cat(self._wrong))}"
        if not self._storage.calibrated or self._values.ndim < 2:
            return None
        error = (self._squared_error / self._squares) ** 0.5 if self._squares else 0.0
        if self._recorded is not None and abs(error - self._recorded) <= RECORDED_ERROR * self._recorded:
            return None
        return f"has a relative error of {error:.6f} against the checkpoint, but the file records {self._recorded}"

    def _wrong_rows(self, values: Tensor, rows: slice, wanted: Tensor) -> tuple[Tensor, str]:
        """The rows of `wanted` [rows, columns] that the stored `values` [rows, columns] do not represent: bool [rows],
        and the reason."""
        if self._scales is None:
            rounded = wanted.to(_TORCH[self._storage.weight_type])
            reason = f"differs from the checkpoint rounded to {self._storage.weight_type}"
            return (rounded != values).any(1), reason
        scales = self._scales[:, rows]
        wrong = ~_fitting_scales(scales, wanted, self._storage).all(0)
        if bool(wrong.any()):
            return wrong, "has scales that do not fit the checkpoint"
        reason = "differs from the checkpoint by more than its format rounds"
        if self._storage.codes is not None and not self._storage.calibrated:
            return _beyond_codes(values, scales, wanted, self._storage.codes), reason
        found = (values.view(len(wanted), len(scales), -1) * scales.T[:, :, None]).view_as(wanted)
        if self._storage.codes is None:
            return _beyond_float8(found, scales, wanted, FLOAT8[self._storage.weight_type]), reason
        squares = found.sub_(wanted).square_().sum(1)
        self._squared_error += float(squares.double().sum())
        self._squares += float(wanted.square().sum(1).double().sum())
        reason = "differs from the checkpoint by more than calibrated rounding does"
        return _badly_calibrated(squares, scales, wanted.shape[1], self._storage), reason


def _transposed(values: NDArray[Any]) -> Tensor:
    """A matrix [columns, rows] of any stored dtype -> [rows, columns]; fp8 becomes fp32.

    Bands that fit in the CPU cache are several times as fast as one copy.
    """
    raw = values.view(f"u{values.itemsize}")
    result = np.empty(raw.shape[::-1], raw.dtype)
    for start in range(0, len(raw), 64):
        result[:, start : start + 64] = raw[start : start + 64].T
    match values.dtype.name:
        case "bfloat16":
            return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
        case "float16" | "float32" | "int8":
            return torch.from_numpy(result.view(values.dtype))
    return torch.from_numpy(result.view(values.dtype).astype(np.float32))


def _rows_text(wrong: Tensor) -> str:
    """How many rows are wrong, and which is the first."""
    rows = wrong.nonzero()[:, 0]
    return f"{len(rows)} of {len(wrong)} rows, the first is {int(rows[0])}"


def _largest(values: Tensor) -> Tensor:
    """The largest magnitude along the last axis; NaN if there is one. Several times as fast as abs().amax()."""
    return torch.maximum(values.amax(-1), -values.amin(-1))


def _fitting_scales(scales: Tensor, wanted: Tensor, storage: Storage) -> Tensor:
    """Whether scales [groups, rows] follow from the largest magnitude of each group of a row: bool [groups, rows]."""
    peak = _largest(wanted.reshape(len(wanted), len(scales), -1)).T
    largest = FLOAT8[storage.weight_type].largest if storage.codes is None else float(storage.codes.levels)
    usual = peak / largest
    usual = torch.where(usual == 0, 1, usual)
    least, most = MSE_SCALES if storage.searched_scales else (1 - SCALE_ERROR, 1 + SCALE_ERROR)
    ratio = scales.abs() / usual
    return (ratio >= least) & (ratio <= most)  # NaN does not fit


def _beyond_float8(found: Tensor, scales: Tensor, wanted: Tensor, form: Float8) -> Tensor:
    """The rows in which a value `found` is not the nearest one to `wanted`; both [rows, columns]: bool [rows]."""
    allowed = (found.abs() * form.step + scales.T.abs() * form.smallest) * (1 + SLACK)
    return ~((wanted - found).abs() <= allowed).all(1)


def _beyond_codes(values: Tensor, scales: Tensor, wanted: Tensor, codes: Codes) -> Tensor:
    """The rows in which a code is not the nearest one: bool [rows]. Codes `values` and `wanted` [rows, columns], scales
    [groups, rows].

    The last code is the nearest one to everything beyond it. With the vendor's scales, that is at most one step away.
    """
    grouped = (len(wanted), len(scales), -1)
    steps = (wanted.view(grouped) / scales.T[:, :, None]).clamp_(codes.lowest, codes.highest).sub_(values.view(grouped))
    return ~(_largest(steps) <= 0.5 + SLACK).all(1)  # NaN is wrong


def _badly_calibrated(squared_errors: Tensor, scales: Tensor, columns: int, storage: Storage) -> Tensor:
    """The rows whose squared error [rows] is larger than calibrated rounding makes it: bool [rows]. Scales that were
    searched give no bound."""
    if storage.searched_scales:
        return torch.zeros(len(squared_errors), dtype=torch.bool)
    expected = scales.square().mean(0) * columns / 12  # of rounding to the nearest
    return ~(squared_errors <= CALIBRATED_ERROR**2 * expected)
