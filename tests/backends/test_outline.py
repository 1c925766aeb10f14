"""A file's outline, compared with what onnx reads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from axzoo.backends.host.outline import DeclaredTensor, Outline, read_outline
from axzoo.core.dtypes import ONNX_DTYPES
from axzoo.core.errors import AxzooError
from tiny_model import Built


def _onnx_names() -> dict[int, str]:
    """axzoo's names of the ONNX dtypes; the others in lower case, small floats as in ml_dtypes."""
    spelled = {
        number: {"DOUBLE": "fp64"}.get(key, re.sub(r"^float[48]", r"\g<0>_", key.lower()))
        for key, number in TensorProto.DataType.items()
    }
    return spelled | {number: name for name, number in ONNX_DTYPES.items()}


def _by_onnx(path: Path) -> Outline:
    """The outline according to onnx, which loads the whole file."""
    model, names = onnx.load(path, load_external_data=False), _onnx_names()
    operators: dict[str, int] = {}
    for node in model.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1

    def declared(value: onnx.ValueInfoProto) -> DeclaredTensor:
        kind = value.type.tensor_type
        shape = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim)
        return DeclaredTensor(value.name, names[kind.elem_type], tuple(shape))

    read = read_outline(path)
    for ours, theirs in zip(read.tensors, model.graph.initializer, strict=True):
        assert (ours.name, ours.dtype, ours.shape) == (theirs.name, names[theirs.data_type], tuple(theirs.dims))
        assert ours.external == (theirs.data_location == TensorProto.EXTERNAL)
        if theirs.HasField("raw_data"):
            assert ours.bytes == len(theirs.raw_data)
    return Outline(
        size=path.stat().st_size,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        doc_string=model.doc_string,
        opsets={opset.domain: opset.version for opset in model.opset_import},
        operators=operators,
        functions=len(model.functions),
        inputs=tuple(map(declared, model.graph.input)),
        outputs=tuple(map(declared, model.graph.output)),
        tensors=read.tensors,
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def test_our_own_files(s8: Built, exact: Built) -> None:
    for path in (*s8.layers, s8.post, *exact.layers, exact.post):
        assert read_outline(path) == _by_onnx(path)


def _every_dtype() -> onnx.ModelProto:
    """A model with initializers of every dtype, some in typed data fields, one in an external file."""
    tensors = [
        TensorProto(name=name, data_type=number, dims=[2], raw_data=bytes(2))
        for name, number in TensorProto.DataType.items()
        if 0 < number <= TensorProto.FLOAT4E2M1 and name not in ("STRING", "COMPLEX64", "COMPLEX128")
    ]
    tensors.append(helper.make_tensor("listed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    tensors.append(TensorProto(name="outside", data_type=1, dims=[9, 9], data_location=TensorProto.EXTERNAL))
    values = [
        helper.make_tensor_value_info("fixed", TensorProto.FLOAT16, [1, 2]),
        helper.make_tensor_value_info("named", TensorProto.INT32, ["batch", None, 0]),
        helper.make_tensor_value_info("scalar", TensorProto.BOOL, []),
        helper.make_tensor_value_info("any", TensorProto.UINT8, None),
    ]
    nodes = [helper.make_node("neu mode", ["fixed"], ["scalar"]), helper.make_node("Abs", ["named"], ["any"])]
    graph = helper.make_graph(nodes, "main", values[:2], values[2:], tensors)
    model = helper.make_model(
        graph, ir_version=10, producer_name="Pulsar2", opset_imports=[helper.make_opsetid("", 18)]
    )
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    model.doc_string = "version 3.2"
    model.metadata_props.add(key="extra_data", value="{}")
    return model


def test_file_from_another_tool(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(_every_dtype(), path)
    read = read_outline(path)
    assert read == _by_onnx(path)
    assert read.operators == {"neu mode": 1, "Abs": 1}
    assert [value.shape for value in (*read.inputs, *read.outputs)] == [(1, 2), ("batch", "?", 0), (), ()]
    sizes = {tensor.name: (tensor.bytes, tensor.external) for tensor in read.tensors}
    assert (sizes["listed"], sizes["outside"], sizes["INT8"]) == ((12, False), (0, True), (2, False))


def test_input_that_is_not_a_tensor(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, [2])
    onnx.save(helper.make_model(helper.make_graph([], "main", [sequence], [])), tmp_path / "x.onnx")
    assert read_outline(tmp_path / "x.onnx").inputs == (DeclaredTensor("list", "dtype 0", ()),)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"{}", b"PK\3\4", bytes(100), b"\x08\x0a", b"\x3a\x00", b"<html>"])
def test_files_that_are_not_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.axmodel").write_bytes(content)
    with pytest.raises(AxzooError, match=r"x\.axmodel is damaged or not an ONNX model \(.*\): build or fetch it"):
        read_outline(tmp_path / "x.axmodel")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"is a folder: name one of the \.axmodel files in it"):
        read_outline(tmp_path)


def test_tensor_with_too_many_dimensions(tmp_path: Path) -> None:
    graph = onnx.GraphProto(initializer=[TensorProto(dims=[2] * 65)])
    onnx.save(onnx.ModelProto(ir_version=8, graph=graph), tmp_path / "x.onnx")
    with pytest.raises(AxzooError, match="a tensor has 65 dimensions"):
        read_outline(tmp_path / "x.onnx")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(s8: Built, tmp_path: Path, data: st.DataObject) -> None:
    content = np.fromfile(s8.layers[0], np.uint8)
    for place in data.draw(st.lists(st.integers(0, content.size - 1), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.axmodel"
    path.write_bytes(content[: data.draw(st.integers(0, content.size) | st.just(content.size))].tobytes())
    try:
        read_outline(path)
    except AxzooError as error:
        assert "\n" not in str(error)
