"""GPTQ checkpoints: 4-bit or 8-bit integers with a scale and a zero point per group, dequantized on read.

A linear layer X with K inputs and N outputs is stored transposed. Each int32 packs several fields of `bits` bits, the
first in the lowest bits (AutoGPTQ's QuantLinear, with G groups):

    X.qweight  int32  [K * bits / 32, N]   the integers, packed along the inputs
    X.qzeros   int32  [G, N * bits / 32]   the zero points, packed along the outputs
    X.scales   float  [G, N]
    X.g_idx    int32  [K]                  the group of each input; if absent, consecutive groups of group_size

    X.weight[n, k] = (qweight[k, n] - qzeros[g_idx[k], n]) * scales[g_idx[k], n]

checkpoint_format "gptq" stores the zero points minus one, "gptq_v2" stores them as they are. The one is added back to
all fields of a word in a single addition, as GPTQModel's convert_gptq_v1_to_v2_format does: storing a zero point of 0
has borrowed from the next field.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.checkpoint.tensors import Array, Checkpoint, TensorInfo, numpy_dtype
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json

_FORMATS = ("gptq", "gptq_v2")
_CHUNK_BYTES = 1 << 20  # of packed integers; unpacking takes about thirty times as much memory


@dataclass(frozen=True)
class GptqConfig:
    """How the integers are packed, as declared in `path`. `group_size` counts inputs; -1 means all of them."""

    path: Path
    bits: int
    group_size: int
    act_order: bool
    symmetric: bool
    zeros_less_one: bool

    @property
    def fields(self) -> int:
        """Integers per int32."""
        return 32 // self.bits


def gptq_config(folder: Path) -> GptqConfig | None:
    """The quantization declared in config.json or else quantize_config.json; None if neither declares one.

    Raises AxzooError for an unsupported quantization method, bit width or format.
    """
    path = folder / "config.json"
    config = read_json(path) if path.exists() else None
    declared = config.get("quantization_config") if isinstance(config, dict) else None
    if declared is None:
        path = folder / "quantize_config.json"
        if not path.exists():
            return None
        declared = read_json(path)
        if isinstance(declared, dict):  # AutoGPTQ writes this file without quant_method
            declared = {"quant_method": "gptq"} | declared
    if not isinstance(declared, dict):
        raise AxzooError(f"{path}: its quantization is not a JSON object")
    method = declared.get("quant_method")
    if method != "gptq":
        raise AxzooError(
            f"{path}: quant_method {method!r:.80} is not supported, only gptq: use the model's unquantized checkpoint"
        )
    _one_of(path, declared, "is_marlin_format", (False,), False)
    return GptqConfig(
        path=path,
        bits=_one_of(path, declared, "bits", (4, 8)),
        group_size=_group_size(path, declared.get("group_size")),
        act_order=_one_of(path, declared, "desc_act", (False, True), False),
        symmetric=_one_of(path, declared, "sym", (False, True), False),
        zeros_less_one=_one_of(path, declared, "checkpoint_format", _FORMATS, "gptq") == "gptq",
    )


def _one_of(path: Path, declared: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
    value = default if declared.get(key) is None else declared[key]
    if not any(value == known and type(value) is type(known) for known in allowed):
        wanted = " or ".join(map(repr, allowed))
        raise AxzooError(f"{path}: {key} of the quantization is {value!r:.80}, but must be {wanted}")
    return value


def _group_size(path: Path, value: Any) -> int:
    if type(value) is not int or (value != -1 and not 0 < value < 1 << 31):
        raise AxzooError(f"{path}: group_size of the quantization is {value!r:.80}, but must be positive or -1")
    return value


@dataclass(frozen=True)
class _PackedMatrix:
    """A layer's tensors as stored, with unpacked zero points: words int32 [inputs / fields, outputs], group [inputs],
    zeros uint8 and scales [groups, outputs]."""

    bits: int
    words: Array
    group: NDArray[np.int64]
    zeros: NDArray[np.uint8]
    scales: Array

    @cached_property
    def _words_per_group(self) -> int:
        """If consecutive inputs share a group, the number of words per group; otherwise 0."""
        size, rest = divmod(len(self.group), len(self.scales))
        words, odd = divmod(size, 32 // self.bits)
        consecutive = not rest and not odd and np.array_equal(self.group, np.arange(len(self.group)) // size)
        return words if consecutive else 0

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` of the dequantized matrix, [stop - start, inputs]."""
        zeros, scales = (part[:, start:stop].T.astype(np.float32) for part in (self.zeros, self.scales))
        rows = np.empty((stop - start, len(self.group)), np.float32)
        fields, per_group = 32 // self.bits, self._words_per_group
        step = max(1, _CHUNK_BYTES // (4 * max(1, stop - start)))
        if per_group:
            step = -(-step // per_group) * per_group
        for first in range(0, len(self.words), step):
            codes = _unpack(self.words[first : first + step, start:stop].T, self.bits)
            chunk = rows[:, first * fields : (first + step) * fields]
            if per_group:
                groups = slice(first // per_group, (first + step) // per_group)
                shape = (len(rows), codes.shape[1] // (per_group * fields), per_group * fields)
                _dequantize(codes.reshape(shape), zeros[:, groups, None], scales[:, groups, None], chunk.reshape(shape))
            else:
                group = self.group[first * fields : (first + step) * fields]
                _dequantize(codes, zeros[:, group], scales[:, group], chunk)
        return rows


def _dequantize(codes: Array, zeros: Array, scales: Array, out: Array) -> None:
    with np.errstate(all="ignore"):  # the lock checks for non-finite values
        np.subtract(codes, zeros, out=out)
        np.multiply(out, scales, out=out)


class GptqCheckpoint:
    """Wraps a checkpoint: packed layers appear as X.weight, fp32 [outputs, inputs]; other tensors are unchanged."""

    def __init__(self, stored: Checkpoint, config: GptqConfig) -> None:
        """Raises AxzooError when no tensor is packed, or the shapes contradict `config`."""
        self._stored, self._config = stored, config
        self._last_read = threading.local()
        self._layers = {
            name.removesuffix("qweight") + "weight": name.removesuffix("qweight")
            for name in stored.tensors
            if name.endswith(".qweight")
        }
        if not self._layers:
            raise AxzooError(f"{config.path} declares gptq, but the checkpoint contains no packed tensor (*.qweight)")
        replaced = {
            layer + part for layer in self._layers.values() for part in ("qweight", "qzeros", "scales", "g_idx")
        }
        self.tensors = {name: info for name, info in stored.tensors.items() if name not in replaced}
        for name, layer in self._layers.items():
            if name in self.tensors:
                raise AxzooError(f"{config.path}: the checkpoint contains {name} both packed and unpacked")
            self.tensors[name] = self._checked(name, layer)

    def _checked(self, name: str, layer: str) -> TensorInfo:
        """The dequantized tensor. Raises AxzooError if its stored tensors contradict the config or each other."""
        config, packed = self._config, self._stored.tensors[layer + "qweight"]
        words, outputs = packed.shape if len(packed.shape) == 2 else (0, 0)
        inputs = words * config.fields
        groups = 1 if config.group_size == -1 else -(-inputs // config.group_size)
        expected = {
            "qweight": (words, outputs),
            "qzeros": (groups, -(-outputs // config.fields)),
            "scales": (groups, outputs),
            "g_idx": (inputs,),
        }
        if not config.act_order and layer + "g_idx" not in self._stored.tensors:
            del expected["g_idx"]
        for part, shape in expected.items():
            info = self._stored.tensors.get(layer + part)
            if info is None:
                raise AxzooError(f"{config.path} declares gptq, but the checkpoint has no tensor {layer}{part}")
            if info.shape != shape or 0 in shape:
                raise AxzooError(
                    f"{info.file}: tensor {info.name} has shape {list(info.shape)}, but {list(shape)} follows from "
                    f"{packed.name} and from bits {config.bits} and group_size {config.group_size} of {config.path}"
                )
            if part != "scales" and info.dtype != "I32":
                raise AxzooError(f"{info.file}: tensor {info.name} has dtype {info.dtype}, but gptq requires I32")
        numpy_dtype(self._stored.tensors[layer + "scales"])
        return TensorInfo(name, packed.file, "F32", (outputs, inputs))

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Rows `start` to `stop`: in fp32 for a packed layer, else in the stored dtype.

        Raises AxzooError when the file is damaged, or its groups or zero points contradict the config.
        """
        layer = self._layers.get(name)
        if layer is None:
            return self._stored.read_rows(name, start, stop)
        return self._matrix(layer).rows(start, stop)

    def _matrix(self, layer: str) -> _PackedMatrix:
        """The layer's matrix. Each thread keeps the one that it read last, because matrices are read in blocks of rows,
        and every block needs all words of the file."""
        held: tuple[str, _PackedMatrix] | None = getattr(self._last_read, "matrix", None)
        if held is None or held[0] != layer:
            self._last_read.matrix = None  # frees the memory of the previous matrix
            bits, words = self._config.bits, self._read_all(layer + "qweight")
            zeros, scales = self._zeros(layer), self._read_all(layer + "scales")
            held = self._last_read.matrix = (layer, _PackedMatrix(bits, words, self._groups(layer), zeros, scales))
        return held[1]

    def _read_all(self, name: str) -> Array:
        return self._stored.read_rows(name, 0, self._stored.tensors[name].shape[0])

    def _groups(self, layer: str) -> NDArray[np.int64]:
        """The group of each input, [inputs]."""
        inputs = self.tensors[layer + "weight"].shape[1]
        if layer + "g_idx" not in self._stored.tensors:
            size = inputs if self._config.group_size == -1 else self._config.group_size
            return np.arange(inputs) // size
        group = self._read_all(layer + "g_idx").astype(np.int64)
        count, info = self._stored.tensors[layer + "scales"].shape[0], self._stored.tensors[layer + "g_idx"]
        if group.min() < 0 or group.max() >= count:
            raise AxzooError(
                f"{info.file}: tensor {info.name} has group indices outside 0 to {count - 1}: the checkpoint is damaged"
            )
        return group

    def _zeros(self, layer: str) -> NDArray[np.uint8]:
        """The zero points, [groups, outputs]."""
        config, info = self._config, self._stored.tensors[layer + "qzeros"]
        words = self._read_all(info.name).view(np.uint32)
        if config.zeros_less_one:
            words = words + np.uint32(sum(1 << shift for shift in range(0, 32, config.bits)))
        zeros = _unpack(words, config.bits)[:, : self.tensors[layer + "weight"].shape[0]]
        middle = 1 << (config.bits - 1)
        if config.symmetric and (zeros != middle).any():
            raise AxzooError(
                f"{info.file}: tensor {info.name} has a zero point other than {middle}, but {config.path} has sym: "
                f"true. Either sym or checkpoint_format ({' or '.join(_FORMATS)}) is wrong there"
            )
        return zeros


def _unpack(words: Array, bits: int) -> NDArray[np.uint8]:
    """Unpacks fields of 4 or 8 bits, lowest first: 32-bit words [n, m] -> uint8 [n, m * 32 / bits]."""
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return octets
    fields = np.empty((len(octets), 2 * octets.shape[1]), np.uint8)
    np.bitwise_and(octets, 15, out=fields[:, ::2])
    np.right_shift(octets, 4, out=fields[:, 1::2])
    return fields
