"""A layer rounded with GPTQ: its inputs agree with transformers, its outputs are closer than with plain rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from axzoo.calibrate.rounding import gptq_weights, linear_inputs
from axzoo.model.reading import read_spec
from axzoo.model.spec import LayerSpec
from axzoo.weights.encoding import layer_format
from axzoo.weights.recipe import Recipe
from axzoo.weights.stored import store_weight
from tiny_model import LAYERS, Checkpoint, make_checkpoint

RECIPE = Recipe(weight_type="s4", rounding="gptq", prefill_len=8, kv_cache_len=31)


def _tensors(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """The spec of layer 1, and its tensors by role."""
    names = {"input_layernorm": "input_norm", "post_attention_layernorm": "mlp_norm"}
    found = {}
    for name, tensor in checkpoint.model.model.layers[1].state_dict().items():
        *_, module, kind = name.split(".")
        found[f"{names.get(module, module)}.{kind}"] = tensor.detach().numpy()
    return found


def _states(spec: LayerSpec, tokens: int) -> torch.Tensor:
    """Correlated inputs, like hidden states."""
    torch.manual_seed(0)
    mixing = torch.randn(spec.hidden_size, spec.hidden_size) * torch.randn(spec.hidden_size).exp()
    return torch.randn(12, tokens, spec.hidden_size) @ mixing


@pytest.fixture(scope="module")
def layer(checkpoint: Checkpoint) -> tuple[LayerSpec, dict[str, NDArray[np.float32]]]:
    return read_spec(checkpoint.folder, "llama", LAYERS, ()).layer_spec(1), _tensors(checkpoint)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_inputs_of_linear_layers_agree_with_transformers(model_type: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, model_type=model_type)
    spec = read_spec(tmp_path, model_type, LAYERS, ()).layer_spec(1)
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        return lambda module, inputs: seen.update({name: inputs[0]})

    layer = checkpoint.model.model.layers[1]
    for name, module in layer.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(hook(name.rpartition(".")[2]))
    with torch.inference_mode():
        states = checkpoint.model(torch.arange(1, 61).view(5, 12), output_hidden_states=True).hidden_states[1]
        weights = {role: torch.from_numpy(tensor) for role, tensor in _tensors(checkpoint).items()}
        found = {role: inputs for roles, inputs in linear_inputs(spec, weights, states, 12) for role in roles}
    assert found.keys() == seen.keys()
    for role, inputs in found.items():
        torch.testing.assert_close(inputs, seen[role], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weight_type", ["s4", "s8"])
@pytest.mark.parametrize("choices", [{}, {"scale_rule": "mse"}, {"weight_group_size": 16}])
def test_outputs_are_closer_than_with_plain_rounding(
    layer: tuple[LayerSpec, dict[str, NDArray[np.float32]]], weight_type: Any, choices: dict[str, Any]
) -> None:
    spec, tensors = layer
    recipe = replace(RECIPE, weight_type=weight_type, **choices)
    states = _states(spec, 20)
    rounded = gptq_weights(spec, recipe, tensors, states)
    assert rounded.keys() == {role for role, tensor in tensors.items() if tensor.ndim == 2}
    weights = {role: torch.from_numpy(tensor) for role, tensor in tensors.items()}
    plain_form = layer_format(replace(recipe, rounding="nearest"))
    for roles, inputs in linear_inputs(spec, weights, states, 20):
        x = inputs.flatten(0, 1).numpy()
        for role in (f"{name}.weight" for name in roles):
            plain = store_weight(role, [tensors[role]], tensors[role].shape, plain_form)  # type: ignore[arg-type]
            assert rounded[role].values.dtype == plain.values.dtype
            assert rounded[role].scales.shape == plain.scales.shape
            ours, plains = (np.linalg.norm(x @ (w.dequantized() - tensors[role].T)) for w in (rounded[role], plain))
            assert ours < plains


def test_scales_follow_the_recipe(layer: tuple[LayerSpec, dict[str, NDArray[np.float32]]]) -> None:
    spec, tensors = layer
    rounded = gptq_weights(spec, RECIPE, tensors, _states(spec, 20))
    for role, weight in rounded.items():
        plain = store_weight(role, [tensors[role]], tensors[role].shape, layer_format(RECIPE))  # type: ignore[arg-type]
        np.testing.assert_array_equal(weight.scales, plain.scales)


def test_the_number_of_cores_does_not_matter(layer: tuple[LayerSpec, dict[str, NDArray[np.float32]]]) -> None:
    spec, tensors = layer
    states = _states(spec, 64)
    cores, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(gptq_weights(spec, replace(RECIPE, scale_rule="mse"), tensors, states))
    finally:
        torch.set_num_threads(cores)
    for role, weight in found[0].items():
        assert weight.values.tobytes() == found[1][role].values.tobytes()
        assert weight.scales.tobytes() == found[1][role].scales.tobytes()
