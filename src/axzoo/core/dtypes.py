"""The dtypes of graph values, by the names used in recipes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int4": np.dtype(ml_dtypes.int4),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "uint32": np.dtype(np.uint32),
}

ONNX_DTYPES: dict[str, int] = {
    "fp32": 1,
    "fp16": 10,
    "bf16": 16,
    "fp8_e4m3": 17,
    "fp8_e5m2": 19,
    "int4": 22,
    "int8": 3,
    "uint8": 2,
    "int32": 6,
    "int64": 7,
    "uint32": 12,
}
"""The values of onnx.TensorProto.DataType, repeated here so that the engine does not have to import onnx."""
