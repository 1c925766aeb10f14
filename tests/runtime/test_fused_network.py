"""The fused session of fast mode against separate layer sessions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from tiny_bundle import CHUNK, CONTEXT, EXACT, VOCAB_SIZE, Oracle

from axzoo.core.errors import AxzooError
from axzoo.runtime.model import load_model
from axzoo.weights.recipe import Recipe

BuildBundle = Callable[[Recipe], Path]
IDS = [int(i) for i in np.random.default_rng(0).integers(0, VOCAB_SIZE, CONTEXT)]


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide)


@pytest.mark.parametrize("prefill_len", [CHUNK, 0])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 13, 15])
def test_a_prompt_of_any_length_then_decode(
    build_bundle: BuildBundle, oracle: Oracle, prefill_len: int, length: int
) -> None:
    """With fp32 weights the fused graph must be exact, beyond the reach of the prefill groups too."""
    recipe = EXACT if prefill_len else replace(EXACT, prefill_len=0, last_kv_cache_len=())
    model = load_model(build_bundle(recipe), "fast")
    assert_allclose(model.prefill(IDS[:length]), oracle.logits(IDS[:length]), atol=2e-3, rtol=1e-4)
    for end in range(length + 1, CONTEXT + 1):
        assert_allclose(model.decode(IDS[end - 1]), oracle.logits(IDS[:end]), atol=2e-3, rtol=1e-4)
    assert model.is_full
    with pytest.raises(AxzooError, match="has 16 tokens, 15 of them cached, but the context holds only 15"):
        model.decode(0)


def test_rewinding_keeps_the_first_tokens(bundle: Path, oracle: Oracle) -> None:
    model = load_model(bundle, "fast")
    for length in (9, 5, 0):
        model.prefill(IDS[:length] + IDS[length:][::-1])
        model.rewind(length)
        assert_allclose(model.prefill(IDS[length:]), oracle.logits(IDS), atol=2e-3, rtol=1e-4)
        model.reset()


@pytest.mark.parametrize("state", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("weight_type", ["fp32", "fp16", "bf16", "s8", "s4"])
def test_every_kind_of_file_comes_close_to_exact(build_bundle: BuildBundle, state: str, weight_type: str) -> None:
    recipe = replace(EXACT, hidden_state_type=state, weight_type=weight_type, post_weight_type="bf16")
    exact, fast = load_model(build_bundle(recipe)), load_model(build_bundle(recipe), "fast")
    expected, found = (_log_softmax(model.prefill(IDS[:9])) for model in (exact, fast))
    divergence = float(np.sum(np.exp(expected) * (expected - found)))
    assert divergence < (3e-2 if weight_type in ("s8", "s4") else 1e-3)  # activations are int8 too
    assert expected.max() - expected[found.argmax()] < (0.3 if weight_type in ("s8", "s4") else 0.05)


def test_a_fast_session_has_integer_kernels(build_bundle: BuildBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of the seven products of a layer are replaced. The seventh has 48 input features, not whole blocks."""
    loaded: list[onnx.ModelProto] = []
    import onnxruntime

    usual = onnxruntime.InferenceSession

    def record(model: bytes, *args: object, **options: object) -> object:
        loaded.append(onnx.load_model_from_string(model))
        return usual(model, *args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    load_model(build_bundle(replace(EXACT, weight_type="s8", post_weight_type="s8")), "fast")
    counts = [[node.op_type for node in model.graph.node] for model in loaded]
    assert [ops.count("MatMulNBits") for ops in counts] == [10]  # q, k and v are one product; so are gate and up
    assert [ops.count("DequantizeLinear") for ops in counts] == [3]


def test_hidden_states_are_not_available(bundle: Path) -> None:
    with pytest.raises(AxzooError, match="exact mode"):
        load_model(bundle, "fast").prefill(IDS[:2], lambda _layer, _position, _hidden: None)


def test_files_that_do_not_match_are_refused(build_bundle: BuildBundle, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    layer = folder / "llama_p4_l1_together.axmodel"
    other = build_bundle(replace(EXACT, hidden_state_type="bf16"))
    shutil.copy(other / layer.name, layer)
    with pytest.raises(AxzooError, match="layer 1 does not match layer 0"):
        load_model(folder, "fast")
    layer.write_bytes(layer.read_bytes()[:-500])
    with pytest.raises(AxzooError, match=r"l1_together.axmodel cannot be loaded"):
        load_model(folder, "fast")
    elsewhere = onnx.load(other / layer.name)
    weight = next(tensor for tensor in elsewhere.graph.initializer if len(tensor.dims) == 2)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    layer.write_bytes(elsewhere.SerializeToString())
    with pytest.raises(AxzooError, match="refers to weights in another file"):
        load_model(folder, "fast")
    onnx.save(onnx.ModelProto(), layer, format="protobuf")
    with pytest.raises(AxzooError, match=r"l1_together.axmodel cannot be loaded \(it has no ir_version and graph\)"):
        load_model(folder, "fast")
