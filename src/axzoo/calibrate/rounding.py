"""Rounds a layer's weights with GPTQ, for the inputs of its linear layers during calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from axzoo.calibrate.parallel import single_core
from axzoo.model.oracle import attention_context, mlp_activations, norm, project
from axzoo.model.spec import LayerSpec
from axzoo.weights.encoding import ScaledFormat, layer_format
from axzoo.weights.recipe import Recipe
from axzoo.weights.scales import Floats
from axzoo.weights.stored import StoredWeight, store_weight

DAMPING = 0.01
"""Added to the diagonal, as a fraction of its mean; the value is that of the GPTQ paper."""

BLOCK = 128
"""Columns whose errors are propagated to all later columns together."""


@dataclass(frozen=True)
class InverseHessian:
    """The column order of GPTQ, and the upper Cholesky factor of the inverse Hessian in that order.

    order [columns] int64, factor [columns, columns] fp32.
    """

    order: torch.Tensor
    factor: torch.Tensor


def invert_hessian(hessian: torch.Tensor) -> InverseHessian:
    """Inverts hessian [columns, columns] fp32, X^T X of a linear layer's inputs X or a multiple of it; overwrites it.

    Columns whose input is always 0 can be rounded to anything; their diagonal entry is set to 1.
    """
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    ascending = torch.argsort(diagonal, stable=True)
    diagonal += DAMPING * diagonal.mean()
    # With J the reversal, J H J = L L^T, so H^-1 = U^T U with the upper triangular U = J L^-1 J: H is never inverted.
    lower = torch.linalg.cholesky(hessian[ascending[:, None], ascending])
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower)), upper=False)
    return InverseHessian(ascending.flip(0), inverse.flip(0, 1))


def gptq_codes(
    weight: Floats, scales: Floats, codes: Callable[[Floats, Floats], NDArray[Any]], inverse: InverseHessian
) -> NDArray[np.int8]:
    """weight [rows, columns], scales [rows, groups] for groups of equal width -> codes [rows, columns].

    `codes` rounds a column: it maps weights [rows, 1] and scales [rows] to codes [rows, 1].
    """
    rows, columns = weight.shape
    order, factor = inverse.order, inverse.factor
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


SEQUENCES = 8
"""Sequences whose attention scores are in memory at the same time."""


@dataclass(frozen=True)
class GptqFormat:
    """`base` with codes chosen by GPTQ.

    `importance` [columns] weights the error of each column, for scale rules that minimize it.
    """

    base: ScaledFormat
    inverse: InverseHessian
    importance: Floats | None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    def groups(self, columns: int) -> int:
        """Scales per row. Raises FormatError when the group size does not divide `columns`."""
        return self.base.groups(columns)

    def encode(self, weight: Floats) -> tuple[NDArray[Any], Floats]:
        """weight [rows, columns] -> values [rows, columns], scales [rows, groups]."""
        scales = self._scales(weight, self.groups(weight.shape[1]))
        return gptq_codes(weight, scales, self.base.codes, self.inverse).view(self.dtype), scales

    def _scales(self, weight: Floats, groups: int) -> Floats:
        rows = len(weight)
        rule: Callable[..., Floats] = self.base.scales
        if self.importance is not None:
            rule = partial(rule, importance=np.tile(self.importance.reshape(groups, -1), (rows, 1)))
        return rule(weight.reshape(rows * groups, -1)).reshape(rows, groups)


def linear_inputs(
    spec: LayerSpec, weights: Mapping[str, Tensor], x: Tensor, max_length: int
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yields the names of linear layers that share an input, with that input [sequences, length, in_features], in the
    order of execution.

    x [sequences, length, hidden_size] is the input of the decoder layer.
    """
    x = x * spec.input_scale
    normed = norm(spec.norm, weights, x, "input_norm")
    yield ("q_proj", "k_proj", "v_proj"), normed
    attend = torch.vmap(lambda one: attention_context(spec, weights, one, None, max_length)[0], chunk_size=SEQUENCES)
    context = attend(normed)
    yield ("o_proj",), context
    if not spec.parallel:
        x = x + project(weights, "o_proj", context) * spec.residual_scale
        normed = norm(spec.norm, weights, x, "mlp_norm")
    yield ("gate_proj", "up_proj") if spec.gated else ("up_proj",), normed
    yield ("down_proj",), mlp_activations(spec, weights, normed)


def gptq_weights(
    spec: LayerSpec, recipe: Recipe, tensors: Mapping[str, NDArray[np.float32]], states: Tensor
) -> dict[str, StoredWeight]:
    """The layer's stored matrices by role ("q_proj.weight"), rounded with GPTQ.

    `tensors` are the layer's tensors by role, states [sequences, length, hidden_size] its inputs. On one type of CPU,
    equal arguments give equal results for any number of cores. One Hessian is in memory at a time.
    """
    base = layer_format(recipe)
    assert isinstance(base, ScaledFormat), "Recipe allows gptq for integer weights only"
    weights = {role: torch.from_numpy(tensor) for role, tensor in tensors.items()}
    stored: dict[str, StoredWeight] = {}
    with single_core(), torch.inference_mode():
        for roles, inputs in linear_inputs(spec, weights, states, recipe.positions):
            rows = inputs.flatten(0, 1)
            hessian = rows.T @ rows
            importance = hessian.diagonal().numpy().copy() if recipe.scale_rule == "mse" else None
            form = GptqFormat(base, invert_hessian(hessian), importance)
            for name in roles:
                role = f"{name}.weight"
                matrix = tensors[role]
                stored[role] = store_weight(role, [matrix], (matrix.shape[0], matrix.shape[1]), form)
    return stored
