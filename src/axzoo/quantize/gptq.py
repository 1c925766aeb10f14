"""GPTQ: codes chosen column by column, each error made good by the columns that are still to come.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022), algorithm 1,
with the columns in order of falling activation and the scales given. Rows do not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from axzoo.quantize.rows import Floats

DAMPING = 0.01
"""Of the diagonal's mean, added to it: what the paper adds."""

BLOCK = 128
"""Columns whose errors reach the columns behind them at once."""


@dataclass(frozen=True)
class Curvature:
    """What GPTQ needs of a Hessian: the order of the columns, and the upper Cholesky factor of its inverse so ordered.

    order [columns] int64, factor [columns, columns] fp32.
    """

    order: torch.Tensor
    factor: torch.Tensor


def curvature(hessian: torch.Tensor) -> Curvature:
    """hessian [columns, columns] fp32: X^T X of a linear layer's inputs X, or a multiple of it; overwritten.

    A column that no input ever excites costs nothing whatever it is rounded to: it stands for itself.
    """
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    backwards = torch.argsort(diagonal, stable=True)
    diagonal += DAMPING * diagonal.mean()
    # With J the reversal: J H J = L L^T, so H^-1 = U^T U with U = J L^-1 J, which is upper. No inverse of H is formed.
    lower = torch.linalg.cholesky(hessian[backwards][:, backwards])
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower)), upper=False)
    return Curvature(backwards.flip(0), inverse.flip(0, 1))


def gptq_codes(
    weight: Floats, scales: Floats, codes: Callable[[Floats, Floats], NDArray[Any]], curved: Curvature
) -> NDArray[np.int8]:
    """weight [rows, columns], scales [rows, groups] for equal groups of its columns -> codes [rows, columns].

    `codes` rounds: it gives the codes [rows, 1] of a column [rows, 1] under scales [rows].
    """
    rows, columns = weight.shape
    order, factor = curved.order, curved.factor
    group = (order // (columns // scales.shape[1])).tolist()
    rest = torch.from_numpy(weight).T[order]  # a copy [columns, rows], in GPTQ's order
    chosen = torch.empty((columns, rows), dtype=torch.int8)
    by_group = [np.ascontiguousarray(column) for column in scales.T]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty((stop - start, rows))
        for i in range(start, stop):
            scale = by_group[group[i]]
            code = torch.from_numpy(codes(rest[i].numpy()[:, None], scale)[:, 0].astype(np.int8))
            chosen[i] = code
            errors[i - start] = (rest[i] - code * torch.from_numpy(scale)) / factor[i, i]
            rest[i + 1 : stop].addr_(factor[i, i + 1 : stop], errors[i - start], alpha=-1)
        rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    restored = torch.empty_like(chosen)
    restored[order] = chosen
    return restored.T.contiguous().numpy()
