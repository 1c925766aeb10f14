"""Four-bit integers as ONNX files hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_int4(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """codes of dtype int4, any shape -> bytes [ceil(size / 2)], two to a byte, the first in the low half.

    The last half byte of an odd number of codes is 0 (onnx.proto, TensorProto.raw_data).
    """
    nibbles = codes.reshape(-1).view(np.uint8)
    packed = nibbles[0::2] & np.uint8(0x0F)
    packed[: nibbles.size // 2] |= nibbles[1::2] << np.uint8(4)
    return packed
