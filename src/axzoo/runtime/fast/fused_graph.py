"""One graph made of several files' graphs."""

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
from axzoo.runtime.fast.in_place_attention import attend_in_place
from axzoo.runtime.fast.kernels import Kernel, Product
from axzoo.runtime.fast.rewriting import Parts, Values, attributes, join_residual_norms, skip_round_trips

_INLINE = 1024
"""Bytes: larger weights are handed to the session beside the graph."""

_NORMS = ("RMSNormalization", "LayerNormalization")


class Joined:
    """Graphs in the making of one, whose products with integer weights the kernel computes where it fits them.

    Where a file takes a value that another gives, they are joined there.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._parts = Parts()
        self._graph = self._parts.graph
        self._forms: set[tuple[int, int] | None] = set()

    def add(self, source: Path | bytes, path: Path, prefix: str = "", names: Mapping[str, str] | None = None) -> Header:
        """Adds a file, its values renamed to those in `names` or given the prefix; returns what it says of itself.

        Raises AxzooError when the file is damaged or not one that axzoo wrote.
        """
        model, header = _read(source, path)
        try:
            self._join(model, _Names(prefix, names or {}))
        except (ValueError, TypeError, LookupError) as error:
            raise AxzooError(f"{path} cannot be loaded ({error!r}): build it again") from None
        return header

    def suits(self, kernel: Kernel) -> bool:
        """Whether every product has integer weights, of a form that this kernel fits."""
        return None not in self._forms and all(kernel.fits(*form) for form in self._forms if form)

    def take_last(self, value: str, name: str) -> None:
        """Lets the files that follow take just the last token's row of an output [1, n, features], under that name.

        The row is cut off before it is rounded, so that the rounding can be left out. Raises AxzooError when the output
        is none, or not rounded.
        """
        outputs = [output for output in self._graph.output if output.name == value]
        try:
            rounding = Values(self._graph).made_by(value, "Cast")
            outputs[0].name = name
        except LookupError as error:
            raise AxzooError(f"the model's files cannot be joined ({error}): build them again") from None
        ends = {f"{name}/first": -1, f"{name}/end": np.iinfo(np.int64).max, f"{name}/axis": 1}
        for end, number in ends.items():
            self._parts.add_constant(end, np.array([number], np.int64))
        row = f"{name}/Slice"
        self._parts.add_node("Slice", [rounding.input[0], *ends], [row])
        self._parts.add_node("Cast", [row], [name], to=attributes(rounding)["to"])

    def share_caches(self, length: int) -> bool:
        """Makes attention write into caches of `length` tokens, as `attend_in_place` says; whether it could."""
        return attend_in_place(self._graph, length)

    def session(self, options: ort.SessionOptions) -> ort.InferenceSession:
        """The graph, loaded. Raises AxzooError when it is none that ONNX Runtime runs."""
        try:
            skip_round_trips(self._graph)
            join_residual_norms(self._graph)
            return self._parts.load(options)
        except Exception as error:  # ONNX Runtime's own classes share no base class
            raise AxzooError(f"the model's files cannot be loaded together ({error}): build them again") from None

    def _join(self, model: onnx.ModelProto, renamed: _Names) -> None:
        for value in model.graph.input:
            self._take(value, renamed[value.name])
        for value in model.graph.output:
            value.name = renamed[value.name]
            self._graph.output.append(value)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        found = self._integer_products(model.graph, constants)
        first = {together[0].product.output: [one.product for one in together] for together in found}
        gone = {name for together in found for one in together for name in (one.product.output, one.dequantized)}
        for node in model.graph.node:
            if node.output[0] in first:
                self._multiply(first[node.output[0]], renamed)
            elif node.output[0] not in gone:
                self._copy(node, constants, renamed)

    def _take(self, value: onnx.ValueInfoProto, name: str) -> None:
        """An input: what another file gives, or one of the joined graph's."""
        value.name = name
        given = [output for output in self._graph.output if output.name == name]
        if given:
            self._graph.output.remove(given[0])
        elif name not in {known.name for known in self._graph.input}:
            self._graph.input.append(value)

    def _integer_products(
        self, graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]
    ) -> list[list[_Found]]:
        """The products that the kernel fits; those with the same input and form of weights together."""
        dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
        values = Values(graph)
        together: dict[tuple[str, int, int], list[_Found]] = {}
        for node in graph.node:
            if node.op_type != "MatMul":
                continue
            if node.input[1] not in dequantized:
                self._forms.add(None)
                continue
            weight, scale = (constants[name] for name in dequantized[node.input[1]].input)
            scales = np.atleast_2d(numpy_helper.to_array(scale))
            self._forms.add((weight.dims[0], len(scales)))
            if self._kernel.fits(weight.dims[0], len(scales)):
                codes = numpy_helper.to_array(weight)
                normed = any(values.is_made_by(node.input[0], norm) for norm in _NORMS)
                product = Product(node.input[0], node.output[0], codes, scales, normed)
                form = (product.input, weight.data_type, len(scales))
                together.setdefault(form, []).append(_Found(product, node.input[1]))
        return list(together.values())

    def _multiply(self, products: Sequence[Product], renamed: _Names) -> None:
        """One product for all with the same input: fewer waits for the slowest thread."""
        outputs = [renamed[product.output] for product in products]
        together = replace(
            products[0],
            input=renamed[products[0].input],
            output="+".join(outputs),
            codes=np.concatenate([product.codes for product in products], axis=1),
            scales=np.concatenate([product.scales for product in products], axis=1),
        )
        self._kernel.multiply(self._parts, together)
        if len(outputs) > 1:
            widths = np.array([product.codes.shape[1] for product in products], np.int64)
            constant = self._parts.add_constant(f"{together.output}/widths", widths)
            self._parts.add_node("Split", [together.output, constant], outputs, axis=-1)

    def _copy(self, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], renamed: _Names) -> None:
        """A node as it is, with the constants it takes."""
        for name in node.input:
            if name in constants:
                self._keep(constants[name], renamed[name])
        copy = self._graph.node.add()
        copy.CopyFrom(node)
        copy.name = renamed.prefix + node.name
        copy.input[:] = [renamed[name] for name in node.input]
        copy.output[:] = [renamed[name] for name in node.output]

    def _keep(self, tensor: onnx.TensorProto, name: str) -> None:
        """A constant as it is."""
        if len(tensor.raw_data) > _INLINE and tensor.data_type != onnx.TensorProto.INT4:
            self._parts.add_weight(name, numpy_helper.to_array(tensor), tensor.data_type)
        else:
            self._parts.add_tensor(name, tensor)


class _Names(dict[str, str]):
    """What values are called in the joined graph; an input left out has no name in either."""

    def __init__(self, prefix: str, names: Mapping[str, str]) -> None:
        super().__init__(names)
        self[""] = ""
        self.prefix = prefix

    def __missing__(self, name: str) -> str:
        return self.prefix + name


@dataclass(frozen=True)
class _Found:
    """A file's product, by the file's own names, and the value that its weights are dequantized to."""

    product: Product
    dequantized: str


def _read(source: Path | bytes, path: Path) -> tuple[onnx.ModelProto, Header]:
    header = loadable_header(source, path)
    try:
        return onnx.load_model_from_string(source if isinstance(source, bytes) else source.read_bytes()), header
    except DecodeError as error:
        raise AxzooError(f"{path} cannot be loaded ({error}): build it again") from None
