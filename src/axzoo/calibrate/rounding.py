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
from axzoo.quantize.formats import ScaledFormat, layer_format
from axzoo.quantize.gptq import Curvature, curvature, gptq_codes
from axzoo.quantize.rows import Floats
from axzoo.quantize.weights import StoredWeight, store_weight
from axzoo.recipe import Recipe
from axzoo.reference import activations, mixed_values, norm, project
from axzoo.spec import LayerSpec

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
    spec: LayerSpec, weights: Mapping[str, Tensor], x: Tensor, longest: int
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """x [sequences, length, hidden_size] -> the layer's linear layers in the order they compute, those that share an
    input together, with that input [sequences, length, in_features].
    """
    x = x * spec.input_scale
    normed = norm(spec.norm, weights, x, "input_norm")
    yield ("q_proj", "k_proj", "v_proj"), normed
    mix = torch.vmap(lambda one: mixed_values(spec, weights, one, None, longest)[0], chunk_size=SEQUENCES)
    mixed = mix(normed)
    yield ("o_proj",), mixed
    if not spec.parallel:
        x = x + project(weights, "o_proj", mixed) * spec.residual_scale
        normed = norm(spec.norm, weights, x, "mlp_norm")
    yield ("gate_proj", "up_proj") if spec.gated else ("up_proj",), normed
    yield ("down_proj",), activations(spec, weights, normed)


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
