"""Writes weight tables and containers as the vendor's compiler does, byte by byte, from published observations.

It shares no code with axzoo: the tests of the reader compare two independent readings of the same facts.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """The dimensions of a layer and of its build. `qkv_rows` are the rows of a block of q, k and v."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    kind: str = "s8"
    rule: str = "A"
    qkv_rows: int = 32
    qk_norm: bool = False
    kv: int = 15
    prefill: int = 8

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj.weight": (q, self.hidden),
            "k_proj.weight": (kv, self.hidden),
            "v_proj.weight": (kv, self.hidden),
            "o_proj.weight": (self.hidden, q),
            "gate_proj.weight": (self.inner, self.hidden),
            "up_proj.weight": (self.inner, self.hidden),
            "down_proj.weight": (self.hidden, self.inner),
        }

    @property
    def vectors(self) -> dict[str, int]:
        norms = {"q_norm.weight": self.head_dim, "k_norm.weight": self.head_dim} if self.qk_norm else {}
        return {"input_norm.weight": self.hidden, "mlp_norm.weight": self.hidden, **norms}


def random_layer(shape: Shape, random: np.random.Generator) -> dict[str, Matrix]:
    """A layer's tensors by role."""
    layer: dict[str, Matrix] = {}
    for role, size in shape.matrices.items():
        layer[role] = random.standard_normal(size, np.float32) * np.float32(0.02)
    for role, length in shape.vectors.items():
        layer[role] = (1 + 0.3 * random.standard_normal(length)).astype(np.float32)
    return layer


def parts(columns: int) -> list[int]:
    """The widths of the column parts."""
    cuts = max(0, math.ceil((columns - 576) / 544))
    return [columns - 544 * cuts] + [544] * cuts


def row_scale(row: Matrix, kind: str, rule: str) -> np.float32:
    bits = {"s8": 8, "s4": 4}[kind]
    peak = row[int(np.argmax(np.abs(row)))]
    if rule == "A":
        return np.float32(-peak) / np.float32(2 ** (bits - 1))
    return np.float32(abs(peak)) / np.float32(2 ** (bits - 1) - 1)


def row_codes(row: Matrix, scale: np.float32, kind: str, rule: str) -> list[int]:
    """Rule A in 80-bit floating point, whose second rounding differs from a fused operation only in cases that random
    weights do not have; rule B in fp32."""
    half = 2 ** ({"s8": 8, "s4": 4}[kind] - 1)
    if rule == "B":
        return [int(code) for code in np.clip(np.round(row / scale), 1 - half, half - 1).tolist()]
    inverse = np.longdouble(np.float32(1) / scale)
    shifted = (row.astype(np.longdouble) * inverse + np.longdouble(half + 0.5)).astype(np.float32)
    return [min(math.floor(value) - half, half - 1) for value in shifted.tolist()]


def _chunks(nibbles: list[int], padding: int) -> list[bytes]:
    """A row of nibbles in pieces of 36 columns, 18 bytes each."""
    padded = nibbles + [padding] * (-len(nibbles) % 36)
    packed = bytes(low | high << 4 for low, high in zip(padded[0::2], padded[1::2], strict=True))
    return [packed[start : start + 18] for start in range(0, len(packed), 18)]


def part_bytes(codes: list[list[int]], scales: list[np.float32], kind: str) -> bytes:
    """One column part of one block of rows: 32 rows, or 64 of s4."""
    out = b""
    if kind == "s4":
        rows = [_chunks([code + 8 for code in row], 8) for row in codes]
        for k in range(16):
            for chunk in range(len(rows[0])):
                out += rows[2 * k][chunk] + rows[2 * k + 1][chunk]
                if len(rows) == 64:
                    out += rows[2 * k + 32][chunk] + rows[2 * k + 33][chunk]
    else:
        low = [_chunks([(code + 128) & 15 for code in row], 0) for row in codes]
        high = [_chunks([(code + 128) >> 4 for code in row], 8) for row in codes]
        for r in range(16):
            for chunk in range(len(low[0])):
                out += low[r][chunk] + high[r][chunk] + low[r + 16][chunk] + high[r + 16][chunk]
    for row in codes:
        out += struct.pack("<i", -32768 * sum(row)) + (bytes(4) if kind == "s8" else b"")
    out += bytes(4 * len(codes))
    return out + b"".join(struct.pack("<f", scale) for scale in scales)


def block_bytes(rows: Matrix, kind: str, rule: str, widths: list[int] | None = None) -> bytes:
    """One block of rows. A row of zeros has scale 1."""
    if kind not in ("s8", "s4"):
        dtype = {
            "bf16": ml_dtypes.bfloat16,
            "fp16": np.float16,
            "fp32": np.float32,
            "fp8_e4m3": ml_dtypes.float8_e4m3fn,
        }
        rounded = rows.astype(dtype[kind]).astype(np.float32)
        return b"".join(struct.pack("<f", rounded[row, column]) for column in range(rows.shape[1]) for row in range(32))
    scales = [row_scale(row, kind, rule) or np.float32(1) for row in rows]
    codes = [row_codes(row, scale, kind, rule) for row, scale in zip(rows, scales, strict=True)]
    out, start = b"", 0
    for width in widths or parts(rows.shape[1]):
        out += part_bytes([row[start : start + width] for row in codes], scales, kind)
        start += width
    return out


@dataclass
class Table:
    """A weight table under construction. `places` are the offsets at which things start, by name."""

    content: bytearray = field(default_factory=bytearray)
    places: dict[str, int] = field(default_factory=dict)
    _stored: set[bytes] = field(default_factory=set)

    def add(self, name: str, data: bytes) -> None:
        self.places.setdefault(name, len(self.content))
        self.content += data

    def add_zeros(self, count: int) -> None:
        """Adds fp32 zeros, unless as many are stored as a vector."""
        if bytes(4 * count) not in self._stored:
            self._stored.add(bytes(4 * count))
            self.content += bytes(4 * count)

    def add_rows(
        self, name: str, weight: Matrix, rows: int, kind: str, rule: str, widths: list[int] | None = None
    ) -> None:
        """Adds the blocks of a matrix; equal blocks are stored once."""
        self.places.setdefault(name, len(self.content))
        for start in range(0, len(weight), rows):
            block = block_bytes(weight[start : start + rows], kind, rule, widths)
            if block not in self._stored:
                self._stored.add(block)
                self.content += block


def layer_table(shape: Shape, layer: Mapping[str, Matrix]) -> Table:
    """The table of a decoder layer. Norms of ones are left out with their zeros, and a second equal norm."""
    table = Table()
    integer, head = shape.kind in ("s8", "s4"), shape.head_dim
    scale = struct.pack("<f", 1 / math.sqrt(head))
    norm, second = layer["input_norm.weight"], layer["mlp_norm.weight"]
    table.add("scaling", scale * (shape.kv + 1))
    if (norm != 1).any():
        table.add("input_norm.weight", norm.tobytes())
        table.add_zeros(shape.hidden)
    if integer:
        table.add("limit", struct.pack("<f", 32767))

    def rows(role: str, start: int, stop: int | None, size: int) -> None:
        table.add_rows(role if start == 0 else f"{role} rest", layer[role][start:stop], size, shape.kind, shape.rule)

    rows("v_proj.weight", 0, shape.qkv_rows, shape.qkv_rows)
    if not integer:
        table.add("padding", bytes(128))
    rows("v_proj.weight", shape.qkv_rows, None, shape.qkv_rows)
    rows("k_proj.weight", 0, head, shape.qkv_rows)
    head_norms = [role for role in ("k_norm.weight", "q_norm.weight") if role in layer and (layer[role] != 1).any()]
    if "k_norm.weight" in head_norms:
        table.add("k_norm.weight", layer["k_norm.weight"].tobytes())
    angles = np.outer(np.arange(shape.kv), 10000.0 ** (-np.arange(0, head, 2) / head))
    cos, sin = np.cos(angles), np.sin(angles)
    for halves in [(cos, -sin), (sin, cos)] if shape.qk_norm else [(cos, sin)]:
        table.add("rope", np.concatenate(halves, axis=1).astype(np.float32).tobytes())
    if "k_norm.weight" in head_norms:
        table.add_zeros(head)
    rows("k_proj.weight", head, None, shape.qkv_rows)
    rows("q_proj.weight", 0, head, shape.qkv_rows)
    if "q_norm.weight" in head_norms:
        table.add("q_norm.weight", layer["q_norm.weight"].tobytes())
    rows("q_proj.weight", head, None, shape.qkv_rows)
    rows("o_proj.weight", 0, None, 32)
    if (second != 1).any() and (second != norm).any():
        table.add("mlp_norm.weight", second.tobytes())
    if (second != 1).any():
        table.add_zeros(shape.hidden)
    for role in ("gate_proj.weight", "up_proj.weight", "down_proj.weight"):
        rows(role, 0, None, 32)
    table.add("tail", scale * shape.prefill)
    return table


def container(
    table: bytes, hidden: int = 64, kv_size: int = 32, kv: int = 15, prefill: int = 8, groups: int = 2
) -> bytes:
    """The file of a layer with this weight table: decode, then groups of prefill."""
    nodes, inputs, outputs = [], [], []
    blobs = [("npu_params", bytes(table))]
    for group in range(groups):
        tokens, past = (1, kv) if group == 0 else (prefill, prefill * (group - 1))
        cache = [1, past, kv_size] if past else [1, 1, hidden]
        end = f"_{group}" if group else ""
        types: dict[str, tuple[int, list[int]]] = {
            "K_cache": (TensorProto.BFLOAT16, cache),
            "V_cache": (TensorProto.BFLOAT16, cache),
            "indices": (TensorProto.UINT32, [1, tokens]),
            "input": (TensorProto.BFLOAT16, [1, tokens, hidden]),
            "mask": (TensorProto.BFLOAT16, [1, tokens, past + tokens]),
        }
        results: dict[str, tuple[int, list[int]]] = {
            "K_cache_out": (TensorProto.BFLOAT16, [1, tokens, kv_size]),
            "V_cache_out": (TensorProto.BFLOAT16, [1, tokens, kv_size]),
            "output": (TensorProto.BFLOAT16, [1, tokens, hidden]),
        }
        inputs += [helper.make_tensor_value_info(name + end, *kind) for name, kind in types.items()]
        outputs += [helper.make_tensor_value_info(name + end, *kind) for name, kind in results.items()]
        key = f"subgraph_npu_{group}_b1_neu"
        extra = [{"name": "params", "const_data_key": "npu_params"}]
        info = {"name": f"subgraph_npu_{group}", "dotneus": [{"neu_key": key, "batch": 1, "extra_inputs": extra}]}
        nodes.append(
            helper.make_node(
                "neu mode",
                [name + end for name in types],
                [name + end for name in results],
                name=f"subgraph_npu_{group}",
                neu_name=f"subgraph_npu_{group}",
                npu_graph_info=json.dumps(info),
                outputs_info=json.dumps({name + end: ["bfloat16", kind[1]] for name, kind in results.items()}),
                version=1,
            )
        )
        blobs.append((key, b"program of llama_p8_l0_together " * (group + 1)))
    initializers = [TensorProto(name=n, data_type=TensorProto.UINT8, dims=[len(d)], raw_data=d) for n, d in blobs]
    graph = helper.make_graph(nodes, "ax-model", inputs, outputs, initializers)
    model = helper.make_model(
        graph, ir_version=10, producer_name="Pulsar2", opset_imports=[helper.make_opsetid("", 18)]
    )
    model.doc_string = "7.0-lite"
    model.metadata_props.add(key="extra_data", value="{}")
    return bytes(model.SerializeToString())


def write_layer(path: Path, shape: Shape, layer: Mapping[str, Matrix], groups: int = 2) -> Table:
    """Writes the file of a layer; returns its table."""
    table = layer_table(shape, layer)
    sizes: dict[str, Any] = {"hidden": shape.hidden, "kv_size": shape.kv_heads * shape.head_dim, "kv": shape.kv}
    path.write_bytes(container(bytes(table.content), prefill=shape.prefill, groups=groups, **sizes))
    return table


def post_table(norm: Matrix, head: Matrix) -> Table:
    """The table of a post layer, whose lm_head is s8 with rule B."""
    table = Table()
    table.add("norm.weight", norm.tobytes() + bytes(norm.nbytes))
    table.add("limit", struct.pack("<f", 32767))
    table.add_rows("lm_head.weight", head, 32, "s8", "B")
    return table
