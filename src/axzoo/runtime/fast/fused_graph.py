"""Fuses the graphs of several .axmodel files into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from axzoo.backends.host.container import Header
from axzoo.backends.host.contract import loadable_header
from axzoo.core.errors import AxzooError
from axzoo.core.files import open_regular
from axzoo.runtime.fast.in_place_attention import attend_in_place
from axzoo.runtime.fast.kernels import Kernel, MatMul
from axzoo.runtime.fast.rewriting import (
    FusedGraphBuilder,
    GraphIndex,
    attributes,
    fuse_residual_norms,
    skip_round_trips,
)

_MAX_INLINE_BYTES = 1024
"""Larger weights are passed to the session outside the serialized graph."""

_NORMS = ("RMSNormalization", "LayerNormalization")


class FusedGraph:
    """The fused graph of several files.

    `kernel` computes the matrix products with integer weights that it supports. An output of one file is connected to
    the input of the same name of a file added later.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._builder = FusedGraphBuilder()
        self._graph = self._builder.graph
        self._weight_forms: set[tuple[int, int] | None] = set()

    def add(self, source: Path | bytes, path: Path, prefix: str = "", names: Mapping[str, str] | None = None) -> Header:
        """Add a file and return its header. Its values are renamed by `names`; all others get the prefix.

        Raises AxzooError when the file is damaged or not written by axzoo.
        """
        model, header = _read(source, path)
        try:
            self._add_model(model, _Renaming(prefix, names or {}))
        except (ValueError, TypeError, LookupError) as error:
            raise AxzooError(f"{path} cannot be loaded ({error!r}): build it again") from None
        return header

    def supports(self, kernel: Kernel) -> bool:
        """Whether every matrix product has integer weights in a form that `kernel` supports."""
        return None not in self._weight_forms and all(kernel.supports(*form) for form in self._weight_forms if form)

    def keep_last_token(self, value: str, name: str) -> None:
        """Reduce an output [1, n, features] to the row of the last token and rename it; files added later take that.

        The row is sliced before it is cast to the hidden state type, so that the cast can be removed. Raises AxzooError
        when `value` is not an output, or is not made by a Cast.
        """
        outputs = [output for output in self._graph.output if output.name == value]
        try:
            cast = GraphIndex(self._graph).producer(value, "Cast")
            outputs[0].name = name
        except LookupError as error:
            raise AxzooError(f"the files of the model cannot be fused ({error}): build them again") from None
        bounds = {f"{name}/first": -1, f"{name}/end": np.iinfo(np.int64).max, f"{name}/axis": 1}
        for bound, number in bounds.items():
            self._builder.add_constant(bound, np.array([number], np.int64))
        row = f"{name}/Slice"
        self._builder.add_node("Slice", [cast.input[0], *bounds], [row])
        self._builder.add_node("Cast", [row], [name], to=attributes(cast)["to"])

    def use_in_place_attention(self, length: int) -> bool:
        """Make attention write into caches of `length` tokens, if possible. Returns as attend_in_place does."""
        return attend_in_place(self._graph, length)

    def load(self, options: ort.SessionOptions) -> ort.InferenceSession:
        """Load the graph into a session. Raises AxzooError when ONNX Runtime rejects it."""
        try:
            skip_round_trips(self._graph)
            fuse_residual_norms(self._graph)
            return self._builder.load(options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise AxzooError(f"the fused files of the model cannot be loaded ({error}): build them again") from None

    def _add_model(self, model: onnx.ModelProto, renaming: _Renaming) -> None:
        for value in model.graph.input:
            self._add_input(value, renaming[value.name])
        for value in model.graph.output:
            value.name = renaming[value.name]
            self._graph.output.append(value)
        initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        groups = self._find_integer_matmuls(model.graph, initializers)
        first = {group[0].matmul.output: [found.matmul for found in group] for group in groups}
        replaced = {name for group in groups for found in group for name in (found.matmul.output, found.dequantized)}
        for node in model.graph.node:
            if node.output[0] in first:
                self._add_matmuls(first[node.output[0]], renaming)
            elif node.output[0] not in replaced:
                self._copy_node(node, initializers, renaming)

    def _add_input(self, value: onnx.ValueInfoProto, name: str) -> None:
        """Connect an input to an earlier file's output of that name, or make it an input of the fused graph."""
        value.name = name
        outputs = [output for output in self._graph.output if output.name == name]
        if outputs:
            self._graph.output.remove(outputs[0])
        elif name not in {known.name for known in self._graph.input}:
            self._graph.input.append(value)

    def _find_integer_matmuls(
        self, graph: onnx.GraphProto, initializers: Mapping[str, onnx.TensorProto]
    ) -> list[list[_FoundMatMul]]:
        """Return the products that the kernel supports, grouped by input and form of the weights."""
        dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
        index = GraphIndex(graph)
        groups: dict[tuple[str, int, int], list[_FoundMatMul]] = {}
        for node in graph.node:
            if node.op_type != "MatMul":
                continue
            if node.input[1] not in dequantized:
                self._weight_forms.add(None)
                continue
            weight, scale = (initializers[name] for name in dequantized[node.input[1]].input)
            scales = np.atleast_2d(numpy_helper.to_array(scale))
            self._weight_forms.add((weight.dims[0], len(scales)))
            if self._kernel.supports(weight.dims[0], len(scales)):
                codes = numpy_helper.to_array(weight)
                follows_norm = any(index.is_output_of(node.input[0], norm) for norm in _NORMS)
                matmul = MatMul(node.input[0], node.output[0], codes, scales, follows_norm)
                form = (matmul.input, weight.data_type, len(scales))
                groups.setdefault(form, []).append(_FoundMatMul(matmul, node.input[1]))
        return list(groups.values())

    def _add_matmuls(self, matmuls: Sequence[MatMul], renaming: _Renaming) -> None:
        """Add one product for all that share an input: fewer points at which threads wait for each other."""
        outputs = [renaming[matmul.output] for matmul in matmuls]
        merged = replace(
            matmuls[0],
            input=renaming[matmuls[0].input],
            output="+".join(outputs),
            codes=np.concatenate([matmul.codes for matmul in matmuls], axis=1),
            scales=np.concatenate([matmul.scales for matmul in matmuls], axis=1),
        )
        self._kernel.add(self._builder, merged)
        if len(outputs) > 1:
            widths = np.array([matmul.codes.shape[1] for matmul in matmuls], np.int64)
            constant = self._builder.add_constant(f"{merged.output}/widths", widths)
            self._builder.add_node("Split", [merged.output, constant], outputs, axis=-1)

    def _copy_node(
        self, node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto], renaming: _Renaming
    ) -> None:
        """Copy a node and the initializers it uses."""
        for name in node.input:
            if name in initializers:
                self._copy_initializer(initializers[name], renaming[name])
        copy = self._graph.node.add()
        copy.CopyFrom(node)
        copy.name = renaming.prefix + node.name
        copy.input[:] = [renaming[name] for name in node.input]
        copy.output[:] = [renaming[name] for name in node.output]

    def _copy_initializer(self, tensor: onnx.TensorProto, name: str) -> None:
        if len(tensor.raw_data) > _MAX_INLINE_BYTES and tensor.data_type != onnx.TensorProto.INT4:
            self._builder.add_weight(name, numpy_helper.to_array(tensor), tensor.data_type)
        else:
            self._builder.add_tensor(name, tensor)


class _Renaming(dict[str, str]):
    """Maps the value names of a file to those of the fused graph. An omitted optional input keeps its empty name."""

    def __init__(self, prefix: str, names: Mapping[str, str]) -> None:
        super().__init__(names)
        self[""] = ""
        self.prefix = prefix

    def __missing__(self, name: str) -> str:
        return self.prefix + name


@dataclass(frozen=True)
class _FoundMatMul:
    """A product in a file, with the names used there, and the name of its dequantized weights."""

    matmul: MatMul
    dequantized: str


def _read(source: Path | bytes, path: Path) -> tuple[onnx.ModelProto, Header]:
    header = loadable_header(source, path)
    try:
        if isinstance(source, Path):
            with open_regular(source) as file:
                source = file.read()
        return onnx.load_model_from_string(source), header
    except DecodeError as error:
        raise AxzooError(f"{path} cannot be loaded ({error}): build it again") from None
