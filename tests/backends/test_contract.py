"""Untrusted .axmodel files are checked before ONNX Runtime or a KV cache allocates memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from axzoo.backends.host.contract import loadable_header
from axzoo.core.errors import AxzooError
from axzoo.runtime.engine import InferenceSession
from axzoo.weights.recipe import Recipe
from tiny_model import Built

Header = dict[str, Any]
Model = onnx.ModelProto


def _changed(path: Path, change: Callable[[Header, Model], object]) -> bytes:
    """The file with a changed header or graph."""
    model = onnx.load(path)
    (entry,) = model.metadata_props
    header = json.loads(entry.value)
    change(header, model)
    entry.value = json.dumps(header)
    return model.SerializeToString()


def _tensor(header: Header, group: int, name: str) -> Header:
    sides = header["groups"][group]["inputs"] + header["groups"][group]["outputs"]
    found: Header = next(tensor for tensor in sides if tensor["name"] == name)
    return found


def _reach(header: Header, tokens: int) -> None:
    """A consistent cache of `tokens` tokens, more than the graph has positions for."""
    _tensor(header, 0, "mask")["shape"][-1] = tokens + 1
    for name in ("K_cache", "V_cache"):
        _tensor(header, 0, name)["shape"][1] = tokens


def _widen(header: Header, model: Model) -> None:
    """A huge hidden_size in both header and graph."""
    for group in header["groups"]:
        for tensor in group["inputs"] + group["outputs"]:
            if tensor["name"][:2] in ("K_", "V_") and tensor["name"] not in group["unused"]:
                tensor["shape"][-1] = 1 << 40
    for value in (*model.graph.input, *model.graph.output):
        if value.name[:2] in ("K_", "V_"):
            value.type.tensor_type.shape.dim[2].dim_value = 1 << 40


def _grow_weight(_: Header, model: Model) -> None:
    model.graph.initializer[-1].dims[0] = 1 << 40


def _point_outside(_: Header, model: Model) -> None:
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")


def _loop(_: Header, model: Model) -> None:
    model.graph.node.add(op_type="Loop", input=["", ""], output=["x"])


def _function(_: Header, model: Model) -> None:
    node = helper.make_node("Loop", [], ["y"])
    model.functions.append(helper.make_function("", "MatMul", ["x"], ["y"], [node], [helper.make_opsetid("", 23)]))


INCONSISTENCIES: dict[str, tuple[Callable[[Header, Model], object], str]] = {
    "input renamed": (lambda h, _: _tensor(h, 0, "input").update(name="x"), "not those of a decoder layer"),
    "input wider": (lambda h, _: _tensor(h, 0, "input")["shape"].__setitem__(2, 33), "not those of a decoder layer"),
    "states wider": (
        lambda h, _: [t["shape"].__setitem__(2, 33) for g in h["groups"] for t in (g["inputs"][3], g["outputs"][2])],
        "not those of a decoder layer",
    ),
    "graph's input renamed": (
        lambda _, m: setattr(m.graph.input[3], "name", "x"),
        "inputs or outputs of its graph do not match",
    ),
    "graph's output typed": (
        lambda _, m: setattr(m.graph.output[2].type.tensor_type, "elem_type", TensorProto.DOUBLE),
        "inputs or outputs of its graph do not match",
    ),
    "groups swapped": (lambda h, _: h["groups"].reverse(), "not those of a decoder layer"),
    "unused missing": (lambda h, _: h["groups"][1].update(unused=[]), "not those of a decoder layer"),
    "more positions than the rotary tables": (lambda h, _: _reach(h, 32), "need 32 positions, but its graph has 31"),
    "half a billion tokens": (lambda h, _: _reach(h, 500_000_000), "has tensors of .* bytes, too many for a file"),
    "huge width": (_widen, "has tensors of .* bytes, too many for a file"),
    "negative": (lambda h, _: _reach(h, -1), "an empty tensor"),
    "no positions": (lambda _, m: setattr(m.graph.initializer[0], "name", "x"), "no rotary tables"),
    "weight with a wrong size": (_grow_weight, "but its shape requires"),
    "weight in another file": (_point_outside, "weights in another file"),
    "a loop": (_loop, "it uses 'Loop', which axzoo never writes"),
    "a function": (_function, "it uses 'functions', which axzoo never writes"),
    "another kind": (lambda h, _: h.update(kind="x" * 9000), "not decoder_layer, post, vision"),
    "a post layer": (lambda h, _: h.update(kind="post"), "not that of a post layer"),
}


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("case", INCONSISTENCIES)
def test_inconsistent_file_is_refused(s8: Built, case: str, mode: Any) -> None:
    change, message = INCONSISTENCIES[case]
    with pytest.raises(AxzooError, match=message) as error:
        InferenceSession(_changed(s8.layers[0], change), mode=mode)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_post_layer_with_wrong_shapes(s8: Built, mode: Any) -> None:
    for change in (
        lambda h, _: _tensor(h, 0, "input").update(shape=[1, 2, 32]),
        lambda h, _: h["groups"].append(h["groups"][0]),
        lambda h, _: h["groups"][0].update(unused=["input"]),
        lambda h, _: _tensor(h, 0, "output").update(name="logits"),
    ):
        with pytest.raises(AxzooError, match="its shape group is not that of a post layer"):
            InferenceSession(_changed(s8.post, change), mode=mode)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_metadata_that_is_not_utf8_or_too_long(s8: Built, mode: Any) -> None:
    whole = s8.layers[0].read_bytes()
    with pytest.raises(AxzooError, match="build it again"):
        InferenceSession(whole.replace(b'"format"', b'"\xff\xfe\xfdmat"'), mode=mode)
    for change in (
        lambda h, _: h.update(format="x" * 9000),
        lambda h, _: _tensor(h, 0, "mask").update(dtype="y" * 9000),
    ):
        with pytest.raises(AxzooError) as error:
            InferenceSession(_changed(s8.layers[0], change), mode=mode)
        assert len(str(error.value)) < 500


def test_graph_that_fails_at_run_time(s8: Built) -> None:
    """Errors at run time, here a position outside the tables, raise AxzooError too."""
    session = InferenceSession(s8.layers[0])
    feed = {node.name: np.zeros(node.shape, node.dtype) for node in session.get_inputs()}
    feed["indices"][:] = 4_000_000_000
    with pytest.raises(AxzooError, match=r"l0_together.axmodel failed to run on the given inputs \(.*\)$"):
        session.run(None, feed)


def test_half_a_billion_tokens_are_refused_without_using_memory(s8: Built, tmp_path: Path) -> None:
    """In a separate process, whose peak memory is that of loading a valid file."""
    (tmp_path / "case.axmodel").write_bytes(_changed(s8.layers[0], lambda h, _: _reach(h, 500_000_000)))
    script = (
        "import sys, resource; from axzoo.core.errors import AxzooError\n"
        "from axzoo.runtime.engine import InferenceSession\n"
        "from axzoo.runtime.decoder import Decoder\n"
        "try: Decoder([InferenceSession(path) for path in sys.argv[1:]])\n"
        "except AxzooError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True).stdout)
        for path in (s8.layers[0], tmp_path / "case.axmodel")
    ]
    assert peaks[1] < peaks[0] + 32 * 1024


def test_every_file_of_axzoo_can_be_loaded(build_tiny: Callable[[Recipe], Built], exact: Built, s8: Built) -> None:
    topk = build_tiny(Recipe(prefill_len=0, kv_cache_len=127, post_topk=5, ret_postnorm=True, weight_type="s4"))
    for built in (exact, s8, topk):
        for path in (*built.layers, built.post):
            assert loadable_header(path, path).kind in ("decoder_layer", "post")
