"""Matrices for property tests of quantizers, and fp32 arithmetic in plain Python."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
ANY = hnp.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**127), 2.0**127, width=32))
"""The whole range of fp32, including denormals and zeros."""
TIES = st.sampled_from([0.0, 0.5, 1.5, 3.5, 7.0, 7.5, 8.0, 63.5, 127.0, 127.5, 128.0])
TAME = hnp.arrays(np.float32, SHAPES, elements=TIES).flatmap(
    lambda w: hnp.arrays(np.float32, w.shape, elements=st.sampled_from([-1.0, 1.0, 2.0**-30, -3.0])).map(w.__mul__)
)
"""Ties and peaks of both signs."""
MATRICES = st.one_of(ANY, TAME)


def fp32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])
