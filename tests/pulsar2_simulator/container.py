"""The simulator's writer of the documented container: an ONNX model with one opaque operator per shape group."""

from __future__ import annotations

import json
import os
import random
import zlib
from collections.abc import Sequence
from typing import Any

UINT8, DTYPES = 2, {"bf16": 16, "fp16": 10, "fp32": 1, "uint32": 12, "int32": 6}
Tensor = tuple[str, str, tuple[int, ...]]


def varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(content)) + content


def value_info(tensor: Tensor) -> bytes:
    name, dtype, shape = tensor
    lengths = b"".join(text(1, number(1, length)) for length in shape)
    return text(1, name) + text(2, text(1, number(1, DTYPES[dtype]) + text(2, lengths)))


def initializer(name: str, content: bytes) -> bytes:
    return number(1, len(content)) + number(2, UINT8) + text(8, name) + text(9, content)


def attribute(name: str, value: str | int) -> bytes:
    content = number(3, value) + number(20, 2) if isinstance(value, int) else text(4, value) + number(20, 3)
    return text(1, name) + content


def program(stem: str, group: Any) -> bytes:
    """Bytes in the place of a program: they depend on the shapes, hold the file's stem, and have noise as the real ones
    have. Its size varies too."""
    fixed = random.Random(zlib.crc32(repr(group).encode())).randbytes(600)
    noise = os.urandom(200)
    return fixed[:300] + stem.encode() + b"\0" + noise + fixed[300:] + bytes(os.urandom(1)[0] % 16)


def container(stem: str, version: str, groups: Sequence[tuple[list[Tensor], list[Tensor]]], table: bytes) -> bytes:
    """A file. `groups` are the inputs and outputs of each shape group; names of later groups end in their number."""
    graph, programs = b"", b""
    numbered = [[[(f"{name}_{i}" if i else name, *rest) for name, *rest in side] for side in group]
                for i, group in enumerate(groups)]  # fmt: skip
    for i, (inputs, outputs) in enumerate(numbered):
        key = f"subgraph_npu_{i}_b1_neu"
        info = {
            "name": f"subgraph_npu_{i}",
            "dotneus": [
                {"neu_key": key, "batch": 1, "extra_inputs": [{"name": "params", "const_data_key": "npu_params"}]}
            ],
        }
        node = b"".join(text(1, name) for name, *_ in inputs) + b"".join(text(2, name) for name, *_ in outputs)
        node += text(3, f"subgraph_npu_{i}") + text(4, "neu mode")
        node += text(5, attribute("neu_name", f"subgraph_npu_{i}")) + text(
            5, attribute("npu_graph_info", json.dumps(info))
        )
        shapes = {name: [dtype, list(shape)] for name, dtype, shape in outputs}
        node += text(5, attribute("outputs_info", json.dumps(shapes))) + text(5, attribute("version", 1))
        graph += text(1, node)
        programs += text(5, initializer(key, program(stem, groups[i])))
    graph += text(2, "ax-model") + text(5, initializer("npu_params", table)) + programs
    for side, field in ((0, 11), (1, 12)):
        graph += b"".join(text(field, value_info(tensor)) for group in numbered for tensor in group[side])
    model = number(1, 10) + text(2, "Pulsar2") + text(6, version) + text(7, graph) + text(8, number(2, 18))
    return model + text(14, text(1, "extra_data") + text(2, "{}"))
