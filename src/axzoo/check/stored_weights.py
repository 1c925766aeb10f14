"""Whether the weights stored in a file are those of the locked checkpoint, and the oracle's view of them.

Every tensor is compared with the checkpoint's by a bound that follows from its format alone: see docs/checks.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axzoo.backends.host.contents import FileContents, StoredTensor
from axzoo.model.oracle import Weights

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


@dataclass(frozen=True)
class Storage:
    """How a file's matrices must be stored: weight type, the form of its codes, group size, and whether the scales or
    the codes deviate from the vendor's rules."""

    weight_type: str
    codes: Codes | None
    group_size: int = 0
    searched_scales: bool = False
    calibrated: bool = False


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a file for the oracle, fp32 by role: matrices [out_features, in_features], vectors [features].

    A matrix is dequantized when it is first used.
    """

    def __init__(self, contents: FileContents) -> None:
        self._tensors = {name: t for name, t in contents.tensors.items() if name.endswith((".weight", ".bias"))}
        self._contents = contents
        self._loaded: dict[str, Tensor] = {}

    def __getitem__(self, role: str) -> Tensor:
        if role not in self._loaded:
            self._loaded[role] = self._load(role, self._tensors[role])
        return self._loaded[role]

    def _load(self, role: str, tensor: StoredTensor) -> Tensor:
        values = tensor.array()
        if values.ndim != 2:
            return torch.from_numpy(values.astype(np.float32))
        return dequantized(as_tensor(values.T), scales_of(self._contents, role))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def dequantized(values: Tensor, scales: Tensor | None) -> Tensor:
    """values [rows, columns] in a stored dtype, scales [groups, rows] -> fp32 [rows, columns]."""
    if scales is None:
        return values.float()
    weights = torch.empty(values.shape)
    torch.mul(
        values.view(len(values), len(scales), -1), scales.T[:, :, None], out=weights.view(len(values), len(scales), -1)
    )
    return weights


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A copy of an array of any stored dtype; fp8 becomes fp32."""
    match array.dtype.name:
        case "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        case "float16" | "float32" | "int8":
            return torch.from_numpy(array.copy())
    return torch.from_numpy(array.astype(np.float32))


def compared_tensors(wanted: Weights) -> set[str]:
    """The names of the tensors that `weight_faults` compares: weights, biases and scales."""
    return {*wanted, *(_scale_name(role) for role in wanted if role.endswith(".weight"))}


def weight_faults(contents: FileContents, stored: StoredWeights, wanted: Weights, storage: Storage) -> list[str]:
    """The tensors of a file that are not those of the checkpoint, with the reason; empty if all are.

    `wanted` are the checkpoint's tensors in fp32 by role: matrices [out_features, in_features].
    """
    faults = [f"{role} is not in the file" for role in wanted if role not in stored]
    faults += [f"{role} is in the file, but not in the checkpoint" for role in stored if role not in wanted]
    errors = contents.header.about.get("weight_errors", {})
    for role in wanted:
        if role not in stored:
            continue
        fault = _fault(contents, stored, role, wanted[role], storage, errors.get(role.removesuffix(".weight")))
        faults += [f"{role} {fault}"] if fault else []
    return faults


def _fault(
    contents: FileContents, stored: StoredWeights, role: str, wanted: Tensor, storage: Storage, recorded: float | None
) -> str | None:
    tensor = contents.tensors[role]
    if wanted.dim() < 2:
        if tensor.shape != tuple(wanted.shape):
            return f"has shape {list(tensor.shape)} instead of {list(wanted.shape)}"
        return _unequal(stored[role], wanted, "fp32")
    shape = (wanted.shape[0], wanted.shape[1])
    problem = layout_fault(contents, role, shape, storage)
    if problem:
        return problem
    wrong, reason = wrong_rows(as_tensor(tensor.array().T), scales_of(contents, role), stored[role], wanted, storage)
    if bool(wrong.any()):
        return f"{reason} in {rows_text(wrong)}"
    return _recorded_fault(stored[role], wanted, recorded) if storage.calibrated else None


def layout_fault(contents: FileContents, role: str, shape: tuple[int, int], storage: Storage) -> str | None:
    """Why the matrix [out_features, in_features] `shape` is not stored as `storage` says; None if it is."""
    tensor = contents.tensors[role]
    expected = _DTYPE_OF.get(storage.weight_type, storage.weight_type)
    if tensor.shape != shape[::-1]:
        return f"has shape {list(tensor.shape)} instead of {list(shape[::-1])}"
    if tensor.dtype != expected:
        return f"is stored as {tensor.dtype} instead of {expected}"
    scale = contents.tensors.get(_scale_name(role))
    if expected in _TORCH:
        return None if scale is None else "has scales, but its type needs none"
    groups = shape[1] // storage.group_size if storage.group_size else 1
    layouts = [(groups, shape[0]), *([(shape[0],)] if groups == 1 else [])]
    if scale is None or scale.dtype != "fp32" or scale.shape not in layouts:
        return f"has no scales of shape {[groups, shape[0]]}"
    return None


def scales_of(contents: FileContents, role: str) -> Tensor | None:
    """The scales [groups, out_features] of a matrix, None if it has none."""
    scale = contents.tensors.get(_scale_name(role))
    return None if scale is None else as_tensor(np.atleast_2d(scale.array())).float()


def _scale_name(role: str) -> str:
    return f"{role.removesuffix('.weight')}.scale"


def wrong_rows(
    values: Tensor, scales: Tensor | None, found: Tensor, wanted: Tensor, storage: Storage
) -> tuple[Tensor, str]:
    """The rows of `wanted` [rows, columns] that the stored `values` [rows, columns] do not represent: bool [rows], and
    the reason. `scales` [groups, rows]; `found` [rows, columns] are the dequantized values."""
    if scales is None:
        rounded = wanted.to(_TORCH[storage.weight_type])
        return (rounded != values).any(1), f"differs from the checkpoint rounded to {storage.weight_type}"
    wrong = ~_fitting_scales(scales, wanted, storage).all(0)
    if bool(wrong.any()):
        return wrong, "has scales that do not fit the checkpoint"
    if storage.calibrated:
        wrong = (
            torch.zeros(len(wanted), dtype=torch.bool)
            if storage.searched_scales
            else _calibrated(scales, found, wanted)
        )
        return wrong, "differs from the checkpoint by more than calibrated rounding does"
    return _rounded(
        values, scales, found, wanted, storage
    ), "differs from the checkpoint by more than its format rounds"


_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DTYPE_OF = {"s8": "int8", "s4": "int4"}


def _unequal(found: Tensor, wanted: Tensor, dtype: str) -> str | None:
    if torch.equal(found, wanted):
        return None
    return f"differs from the checkpoint rounded to {dtype} in {rows_text(found != wanted)}"


def rows_text(wrong: Tensor) -> str:
    """How many rows are wrong, and which is the first."""
    rows = wrong.nonzero()[:, 0]
    return f"{len(rows)} of {len(wrong)} rows, the first is {int(rows[0])}"


def _fitting_scales(scales: Tensor, wanted: Tensor, storage: Storage) -> Tensor:
    """Whether scales [groups, rows] follow from the largest magnitude of each group of a row: bool [groups, rows]."""
    grouped = wanted.reshape(len(wanted), len(scales), -1)
    peak = torch.maximum(grouped.amax(2), -grouped.amin(2)).T  # several times as fast as aminmax
    largest = FLOAT8[storage.weight_type].largest if storage.codes is None else float(storage.codes.levels)
    usual = peak / largest
    usual = torch.where(usual == 0, 1, usual)
    least, most = MSE_SCALES if storage.searched_scales else (1 - SCALE_ERROR, 1 + SCALE_ERROR)
    ratio = scales.abs() / usual
    return (ratio >= least) & (ratio <= most)  # NaN does not fit


def _rounded(values: Tensor, scales: Tensor, found: Tensor, wanted: Tensor, storage: Storage) -> Tensor:
    """The rows in which a value is not the nearest one of its type: bool [rows]. `values`, `found` and `wanted`
    [rows, columns], scales [groups, rows]."""
    error = wanted - found
    if storage.codes is None:
        form = FLOAT8[storage.weight_type]
        allowed = (found.abs() * form.step + scales.T.abs() * form.smallest) * (1 + SLACK)
        return ~(error.abs() <= allowed).all(1)
    half = scales.T.abs() * (0.5 + SLACK)  # [rows, groups]
    largest = error.abs().view(len(error), len(scales), -1).amax(2)
    wrong = ~(largest <= half).all(1)  # NaN is wrong
    if not bool(wrong.any()):
        return wrong
    rows = wrong.nonzero()[:, 0]  # perhaps only their largest values are beyond the codes
    codes = values[rows].view(len(rows), len(scales), -1)
    beyond = error[rows].view_as(codes) / scales.T[rows, :, None]
    clipped = (codes == storage.codes.highest) & (beyond > 0) | (codes == storage.codes.lowest) & (beyond < 0)
    if not storage.searched_scales:
        clipped &= beyond.abs() <= 1 + SLACK
    wrong[rows] = ~((beyond.abs() <= 0.5 + SLACK) | clipped).flatten(1).all(1)
    return wrong


def _calibrated(scales: Tensor, found: Tensor, wanted: Tensor) -> Tensor:
    """The rows whose error is larger than calibrated rounding makes it: bool [rows]."""
    expected = scales.square().mean(0) * wanted.shape[1] / 12  # of rounding to the nearest
    return ~((wanted - found).square().sum(1) <= CALIBRATED_ERROR**2 * expected)


def _recorded_fault(found: Tensor, wanted: Tensor, recorded: float | None) -> str | None:
    norm = float(wanted.square().sum(1).double().sum().sqrt())
    error = float((wanted - found).square().sum(1).double().sum().sqrt()) / norm if norm else 0.0
    if recorded is not None and abs(error - recorded) <= RECORDED_ERROR * recorded:
        return None
    return f"has a relative error of {error:.6f} against the checkpoint, but the file records {recorded}"
