"""The dtypes of graph values by the names recipes use."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "int64": np.dtype(np.int64),
    "uint32": np.dtype(np.uint32),
}

ONNX_DTYPES: dict[str, int] = {"fp32": 1, "fp16": 10, "bf16": 16, "int8": 3, "int64": 7, "uint32": 12}
"""The numbers of onnx.TensorProto.DataType, spelled out so that the engine need not import onnx."""
