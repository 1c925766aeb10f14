"""Runs an .axmodel in exact mode: stage by stage, with the products between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from axzoo.core.dtypes import ONNX_DTYPES
from axzoo.runtime.exact.products import exact_options, multiply
from axzoo.runtime.exact.stages import divide, last_uses

Typed = tuple[NDArray[Any], int]
"""A contiguous array and the number of its ONNX type, which numpy may not know."""

_FP32 = ONNX_DTYPES["fp32"]


class ExactSession:
    """A model whose weights stay in `content`, usually a mapped file. `also` are values inside its graph, in fp32, that
    `run` can return; products with weights are not among them.

    Raises ValueError or LookupError when its graph is not one that axzoo writes, and whatever ONNX Runtime raises when
    it rejects a stage.
    """

    def __init__(self, content: memoryview, also: Collection[str] = ()) -> None:
        stages = divide(content, also)
        self._stages = [(stage, _load(stage.model)) for stage in stages]
        self._last_use = last_uses(stages)

    def run(self, inputs: Mapping[str, Typed], results: Mapping[str, Typed]) -> None:
        """Run the model on `inputs`, and write its outputs into the arrays `results`. A value is dropped after its last
        use."""
        values = dict(inputs)
        for number, (stage, session) in enumerate(self._stages):
            if session is not None:
                binding = session.io_binding()
                for name in stage.inputs:
                    array, dtype = values[name]
                    binding.bind_input(name, "cpu", 0, dtype, array.shape, array.ctypes.data)
                for name in stage.outputs:
                    if name in results:
                        array, dtype = results[name]
                        binding.bind_output(name, "cpu", 0, dtype, array.shape, array.ctypes.data)
                    else:
                        binding.bind_output(name, "cpu")
                session.run_with_iobinding(binding)
                for name, value in zip(stage.outputs, binding.get_outputs(), strict=True):
                    values[name] = results[name] if name in results else (value.numpy(), _FP32)
            for product in stage.products:
                x, _ = values[product.input]
                y = multiply(x.reshape(-1, x.shape[-1]), product.matrix)
                values[product.output] = y.reshape(*x.shape[:-1], y.shape[-1]), _FP32
            for name in self._last_use[number]:
                values.pop(name, None)


def _load(model: bytes) -> ort.InferenceSession | None:
    if not model:
        return None
    return ort.InferenceSession(model, exact_options(), providers=["CPUExecutionProvider"])
