"""A layer's weights rounded by GPTQ, for what its linear layers are given while the model reads."""

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


SEQUENCES = 8
"""Sequences whose attention scores are held at once."""


@dataclass(frozen=True)
class GptqFormat:
    """`base`, its codes chosen by GPTQ for inputs of that curvature.

    `importance` [columns], for a scale rule that weighs errors: how much a column's counts.
    """

    base: ScaledFormat
    curved: Curvature
    importance: Floats | None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    def groups(self, columns: int) -> int:
        """Scales to a row. Raises FormatError when the groups do not divide it."""
        return self.base.groups(columns)

    def encode(self, weight: Floats) -> tuple[NDArray[Any], Floats]:
        """weight [rows, columns] -> values [rows, columns], scales [rows, groups]."""
        scales = self._scales(weight, self.groups(weight.shape[1]))
        return gptq_codes(weight, scales, self.base.codes, self.curved).view(self.dtype), scales

    def _scales(self, weight: Floats, groups: int) -> Floats:
        rows = len(weight)
        rule: Callable[..., Floats] = self.base.scales
        if self.importance is not None:
            rule = partial(rule, importance=np.tile(self.importance.reshape(groups, -1), (rows, 1)))
        return rule(weight.reshape(rows * groups, -1)).reshape(rows, groups)


def linear_inputs(
    spec: LayerSpec, weights: Mapping[str, Tensor], x: Tensor, max_length: int
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """x [sequences, length, hidden_size] -> the layer's linear layers in the order they compute, those that share an
    input together, with that input [sequences, length, in_features].
    """
    x = x * spec.input_scale
    normed = norm(spec.norm, weights, x, "input_norm")
    yield ("q_proj", "k_proj", "v_proj"), normed
    mix = torch.vmap(lambda one: attention_context(spec, weights, one, None, max_length)[0], chunk_size=SEQUENCES)
    mixed = mix(normed)
    yield ("o_proj",), mixed
    if not spec.parallel:
        x = x + project(weights, "o_proj", mixed) * spec.residual_scale
        normed = norm(spec.norm, weights, x, "mlp_norm")
    yield ("gate_proj", "up_proj") if spec.gated else ("up_proj",), normed
    yield ("down_proj",), mlp_activations(spec, weights, normed)


def gptq_weights(
    spec: LayerSpec, recipe: Recipe, tensors: Mapping[str, NDArray[np.float32]], states: Tensor
) -> dict[str, StoredWeight]:
    """The layer's matrices as the recipe stores them, by role ("q_proj.weight").

    `tensors` are the layer's, by role; states [sequences, length, hidden_size] are its inputs. Equal arguments give
    equal results on one kind of processor, however many cores it has. One Hessian is held at a time.
    """
    base = layer_format(recipe)
    assert isinstance(base, ScaledFormat), "Recipe admits gptq for integers alone"
    weights = {role: torch.from_numpy(tensor) for role, tensor in tensors.items()}
    stored: dict[str, StoredWeight] = {}
    with single_core(), torch.inference_mode():
        for roles, inputs in linear_inputs(spec, weights, states, recipe.positions):
            rows = inputs.flatten(0, 1)
            hessian = rows.T @ rows
            importance = hessian.diagonal().numpy().copy() if recipe.scale_rule == "mse" else None
            form = GptqFormat(base, curvature(hessian), importance)
            for name in roles:
                role = f"{name}.weight"
                matrix = tensors[role]
                stored[role] = store_weight(role, [matrix], (matrix.shape[0], matrix.shape[1]), form)
    return stored
