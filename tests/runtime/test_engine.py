"""The engine: pyaxengine's interface, its strict checks, and the results of exact mode."""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from axzoo.core.errors import AxzooError
from axzoo.model import oracle as reference
from axzoo.model.rope import make_rope
from axzoo.model.spec import LayerSpec, NormSpec
from axzoo.runtime.engine import (
    InferenceSession,
    NodeArg,
    SessionOptions,
    axclrt_provider_name,
    axengine_provider_name,
    get_available_providers,
)
from axzoo.weights.recipe import Recipe
from tiny_model import EXACT, Built

Feed = dict[str, NDArray[Any]]
MASKED = -65536.0


@pytest.fixture(scope="module")
def layer(s8: Built) -> InferenceSession:
    return InferenceSession(s8.layers[0])


def _feed(session: InferenceSession, group: int, seed: int = 0) -> Feed:
    """Random inputs after a cache that is half full. Every token attends to all tokens before it."""
    rng = np.random.default_rng(seed)
    feed = {node.name: rng.standard_normal(node.shape) for node in session.get_inputs(group)}
    tokens, total = feed["mask"].shape[1:]
    used = (total - tokens) // 2
    mask = np.full((1, tokens, total), MASKED)
    mask[:, :, :used] = 0
    mask[:, :, total - tokens :] = np.triu(np.full((tokens, tokens), MASKED), 1)
    feed |= {"mask": mask, "indices": np.arange(used, used + tokens)[None]}
    return {n.name: feed[n.name].astype(np.dtype(n.dtype)) for n in session.get_inputs(group)}


def test_outputs_come_in_the_requested_order(layer: InferenceSession) -> None:
    feed = _feed(layer, 0)
    everything = layer.run(None, feed)
    names = [node.name for node in layer.get_outputs()]
    assert [array.dtype for array in everything] == [ml_dtypes.bfloat16] * 3
    assert [array.shape for array in everything] == [node.shape for node in layer.get_outputs()]
    output, keys = layer.run(["output", "K_cache_out"], feed)
    assert_array_equal(output, everything[names.index("output")])
    assert_array_equal(keys, everything[names.index("K_cache_out")])
    with pytest.raises(ValueError, match="no output named logits; the outputs are K_cache_out, V_cache_out, output"):
        layer.run(["output", "logits"], feed)


def test_outputs_of_different_runs_do_not_share_memory(layer: InferenceSession) -> None:
    (first,) = layer.run(["output"], _feed(layer, 0))
    kept = first.copy()
    layer.run(["output"], _feed(layer, 0, seed=5))
    assert_array_equal(first, kept)


def test_strided_views_are_accepted(layer: InferenceSession) -> None:
    feed = _feed(layer, 0)
    wide = np.repeat(feed["K_cache"], 2, axis=2)
    strided = {**feed, "K_cache": wide[:, :, ::2]}
    assert not strided["K_cache"].flags["C_CONTIGUOUS"]
    assert_array_equal(layer.run(["output"], strided)[0], layer.run(["output"], feed)[0])


@pytest.mark.parametrize("group", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["K_cache", "V_cache", "indices", "input", "mask"])
def test_shape_and_dtype_must_be_exact(layer: InferenceSession, group: int, name: str) -> None:
    feed = _feed(layer, group)
    array = feed[name]
    shape, dtype = list(array.shape), array.dtype
    longer = np.concatenate([array, array], axis=1)
    for wrong in (longer, array[:, :0], array[0], array[None], array[..., :-1], array.astype(np.float64)):
        with pytest.raises(ValueError) as error:
            layer.run(None, {**feed, name: wrong}, shape_group=group)
        expected = f"shape group {group}: {name} must be {dtype} {shape}, got {wrong.dtype} {list(wrong.shape)}"
        assert expected in str(error.value)
    layer.run(None, feed, shape_group=group)


def test_group_1_takes_dummy_caches_as_wide_as_the_hidden_state(layer: InferenceSession) -> None:
    feed = _feed(layer, 1)
    assert feed["K_cache"].shape == (1, 1, 32)
    with pytest.raises(ValueError, match=r"K_cache must be bfloat16 \[1, 1, 32\], got bfloat16 \[1, 1, 16\]"):
        layer.run(None, {**feed, "K_cache": feed["K_cache"][..., :16]}, shape_group=1)


def test_missing_inputs_are_refused(layer: InferenceSession) -> None:
    feed = _feed(layer, 0)
    for wrong in ({k: v for k, v in feed.items() if k != "mask"}, {}):
        with pytest.raises(ValueError, match="group 0: the inputs are K_cache, V_cache, indices, input, mask; got"):
            layer.run(None, wrong)


@pytest.mark.parametrize("group", [-1, 4, 1000])
def test_a_group_out_of_range_is_refused(layer: InferenceSession, group: int) -> None:
    for call in (layer.get_inputs, layer.get_outputs, lambda g: layer.run(None, {}, shape_group=g)):
        with pytest.raises(ValueError, match=f"has shape groups 0 to 3, not {group}"):
            call(group)


@pytest.mark.parametrize("content", [0.0, 1e30, np.nan, np.inf])
def test_the_dummy_caches_of_group_1_are_not_read(layer: InferenceSession, content: float) -> None:
    feed = _feed(layer, 1)
    dummy = np.full_like(feed["K_cache"], content)
    for found, wanted in zip(
        layer.run(None, {**feed, "K_cache": dummy, "V_cache": dummy}, shape_group=1),
        layer.run(None, feed, shape_group=1),
        strict=True,
    ):
        assert_array_equal(found, wanted)


@pytest.mark.parametrize("group", [0, 2, 3])
def test_masked_slots_have_no_influence(layer: InferenceSession, group: int) -> None:
    feed = _feed(layer, group)
    changed = {name: array.copy() for name, array in feed.items()}
    for cache in ("K_cache", "V_cache"):
        changed[cache][:, cache_used(feed) :] = 3
        assert (changed[cache] != feed[cache]).any()
    for found, wanted in zip(
        layer.run(None, changed, shape_group=group), layer.run(None, feed, shape_group=group), strict=True
    ):
        assert_array_equal(found, wanted)


def cache_used(feed: Feed) -> int:
    return int((feed["mask"][0, 0, :-1][: feed["K_cache"].shape[1]] == 0).sum())


def test_exact_mode_computes_with_dequantized_weights_in_fp32(build_tiny: Callable[[Recipe], Built]) -> None:
    """An s8 layer against torch, with codes times scales as read from the file."""
    built = build_tiny(replace(EXACT, weight_type="s8"))
    session = InferenceSession(built.layers[0], mode="exact")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(built.layers[0]).graph.initializer}
    weights = {
        name: torch.from_numpy(
            (array * stored.get(name.replace(".weight", ".scale"), np.float32(1))).T.astype(np.float32)
        )
        for name, array in stored.items()
        if name.endswith(".weight")
    }
    feed = _feed(session, 1)
    rope = make_rope(8, 1e4, {"rope_type": "default"}, 128)
    spec = LayerSpec(32, 48, 4, 2, 8, NormSpec("rms_norm", 1e-5), rope, 128)
    wanted, _ = reference.layer(spec, weights, torch.from_numpy(feed["input"][0]))
    (found,) = session.run(["output"], feed, shape_group=1)
    assert_allclose(found[0], wanted.numpy(), atol=1e-5 * float(wanted.abs().max()))


def test_fast_mode_comes_close_to_exact(build_tiny: Callable[[Recipe], Built]) -> None:
    path = build_tiny(replace(EXACT, weight_type="s8")).layers[0]
    exact, fast = InferenceSession(path, mode="exact"), InferenceSession(path, mode="fast")
    for group in range(4):
        (wanted,), (found,) = (s.run(["output"], _feed(exact, group), shape_group=group) for s in (exact, fast))
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.999


def test_fast_mode_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"none.axmodel is missing: build the bundle again"):
        InferenceSession(tmp_path / "none.axmodel", mode="fast")


def _foreign(path: Path, metadata: str | None) -> Path:
    """Write a valid ONNX file that axzoo did not build."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    if metadata is not None:
        model.metadata_props.add(key="axzoo", value=metadata)
    onnx.save(model, path)
    return path


GROUP = '{"inputs":[{"name":"x","dtype":"float8","shape":[1]}],"outputs":[],"unused":[]}'
LENGTHS = '{"inputs":[{"name":"x","dtype":"fp32","shape":["n"]}],"outputs":[],"unused":[]}'


@pytest.mark.parametrize(
    "metadata, message",
    [
        (None, "has no 'axzoo' metadata: it was not built by axzoo"),
        ("", "damaged 'axzoo' metadata"),
        ("{", "damaged 'axzoo' metadata"),
        ("[]", "damaged 'axzoo' metadata"),
        ("{}", "damaged 'axzoo' metadata"),
        ('{"format":2}', "has format 2, but this axzoo reads format 1: build it again"),
        ('{"format":1,"kind":"post","about":{},"groups":3}', "damaged 'axzoo' metadata"),
        ('{"format":1,"kind":"post","about":{},"groups":[{}]}', "damaged 'axzoo' metadata"),
        ('{"format":1,"kind":"post","about":{},"groups":[]}', "damaged 'axzoo' metadata"),
        ('{"format":1,"kind":"post","about":{},"groups":[' + GROUP + "]}", "damaged 'axzoo' metadata .*'float8'"),
        ('{"format":1,"kind":"post","about":{},"groups":[' + LENGTHS + "]}", "damaged 'axzoo' metadata"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, metadata: str | None, message: str) -> None:
    with pytest.raises(AxzooError, match=message) as error:
        InferenceSession(_foreign(tmp_path / "foreign.axmodel", metadata))
    _is_one_line_about(error.value, tmp_path / "foreign.axmodel")


def test_a_missing_or_damaged_file_is_refused(s8: Built, tmp_path: Path) -> None:
    path = tmp_path / "broken.axmodel"
    with pytest.raises(AxzooError, match="is missing: build the bundle again") as error:
        InferenceSession(path)
    _is_one_line_about(error.value, path)
    whole = s8.layers[0].read_bytes()
    for data in (b"", b"hello", whole[: len(whole) // 2], whole[:-100], b"\0" * 1000, b"PK\3\4" + whole):
        path.write_bytes(data)
        with pytest.raises(AxzooError, match=r"build it again|not built by axzoo") as error:
            InferenceSession(path)
        _is_one_line_about(error.value, path)
    with pytest.raises(AxzooError, match="is missing"):
        InferenceSession(tmp_path)


def _is_one_line_about(error: AxzooError, path: Path) -> None:
    assert str(error).startswith(str(path))
    assert "\n" not in str(error)


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_results_do_not_depend_on_the_number_of_threads(s8: Built, threads: str) -> None:
    """OMP_NUM_THREADS, which Snakemake sets, limits the threads."""
    script = (
        "import hashlib, sys, numpy as np; from axzoo.runtime.engine import InferenceSession;"
        "s = InferenceSession(sys.argv[1]); r = np.random.default_rng(0);"
        "f = {n.name: r.standard_normal(n.shape).astype(np.dtype(n.dtype)) for n in s.get_inputs(2)};"
        "f['indices'] = np.arange(8, 16, dtype=np.uint32)[None];"
        "import os; print(hashlib.sha256(b''.join(a.tobytes() for a in s.run(None, f, shape_group=2))).hexdigest(),"
        " len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, s8.layers[0]],
        env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    digest, count = done.stdout.split()
    assert int(count) <= int(threads) + 1
    session = InferenceSession(s8.layers[0])
    rng = np.random.default_rng(0)
    feed = {n.name: rng.standard_normal(n.shape).astype(np.dtype(n.dtype)) for n in session.get_inputs(2)}
    feed["indices"] = np.arange(8, 16, dtype=np.uint32)[None]
    assert digest == hashlib.sha256(b"".join(a.tobytes() for a in session.run(None, feed, shape_group=2))).hexdigest()


def test_the_interface_of_pyaxengine(s8: Built) -> None:
    """Names and order of parameters, and the types returned."""
    signature = inspect.signature(InferenceSession)
    assert list(signature.parameters)[:4] == ["path_or_bytes", "sess_options", "providers", "provider_options"]
    assert list(inspect.signature(InferenceSession.run).parameters)[1:] == [
        "output_names", "input_feed", "run_options", "shape_group",
    ]  # fmt: skip
    options = SessionOptions()
    session = InferenceSession(str(s8.post), options)
    assert session.get_session_options() is options
    assert session.get_providers() == "AxEngineExecutionProvider"
    (node,) = session.get_inputs()
    assert node == NodeArg("input", np.dtype(ml_dtypes.bfloat16), (1, 1, 32))
    assert (node.dtype == ml_dtypes.bfloat16, str(node.dtype)) == (True, "bfloat16")


def test_a_model_can_be_given_as_bytes(s8: Built, layer: InferenceSession) -> None:
    session = InferenceSession(s8.layers[0].read_bytes())
    for group in range(4):
        feed = _feed(layer, group)
        for found, wanted in zip(
            session.run(None, feed, shape_group=group), layer.run(None, feed, shape_group=group), strict=True
        ):
            assert_array_equal(found, wanted)
    with pytest.raises(AxzooError, match="model bytes cannot be loaded"):
        InferenceSession(b"hello")


def test_providers_are_selected_as_in_pyaxengine(s8: Built) -> None:
    def chosen(providers: Any) -> str:
        return InferenceSession(s8.post, providers=providers).get_providers()

    own, card = axengine_provider_name, axclrt_provider_name
    assert get_available_providers() == [own, card]
    assert chosen(None) == chosen(own) == chosen([own, card]) == own
    assert chosen(card) == chosen([card]) == chosen(["CUDAExecutionProvider", card]) == card
    assert chosen([(card, {"device_id": 1}), own]) == card
    with pytest.raises(ValueError, match=r"CPUExecutionProvider.*; the providers are AxEngineExecutionProvider"):
        chosen(["CPUExecutionProvider"])
    with pytest.raises(TypeError, match="not 3"):
        chosen([3])


def test_run_options_and_extra_inputs_are_ignored(layer: InferenceSession) -> None:
    feed = _feed(layer, 0)
    with_more = layer.run(["output"], {**feed, "attention": np.zeros(3)}, object(), 0)
    assert_array_equal(with_more[0], layer.run(["output"], feed)[0])


def test_a_session_is_released_at_the_end_of_a_with_block(s8: Built) -> None:
    with InferenceSession(s8.layers[0]) as session:
        released = weakref.ref(session._session)
    assert released() is None


def test_arrays_are_not_copied(build_tiny: Callable[[Recipe], Built]) -> None:
    """A contiguous cache is not copied, in bf16 too: a strided one, which must be, takes as much memory more."""
    session = InferenceSession(build_tiny(Recipe(prefill_len=0, kv_cache_len=127)).layers[0])
    feed = _feed(session, 0)
    cache = feed["K_cache"]
    strided = np.repeat(cache, 2, axis=2)[..., ::2]
    assert cache.nbytes == 127 * 16 * 2
    assert _peak(session, feed | {"K_cache": strided}) > _peak(session, feed) + 0.9 * cache.nbytes


def _peak(session: InferenceSession, feed: Feed) -> int:
    session.run(None, feed)
    tracemalloc.start()
    try:
        session.run(None, feed)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", ["", "many", "0", "4,2"])
def test_invalid_thread_counts_are_ignored(s8: Built, value: str) -> None:
    script = "import sys; from axzoo.runtime.engine import InferenceSession; InferenceSession(sys.argv[1])"
    environment = {**os.environ, "OMP_NUM_THREADS": value}
    subprocess.run([sys.executable, "-c", script, s8.post], env=environment, check=True, capture_output=True)
