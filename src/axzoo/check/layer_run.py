"""Runs one layer's file as host programs do, through every shape group, and records what went in and came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.runtime.buffers import full_mask
from axzoo.runtime.decoder import Decoder
from axzoo.runtime.engine import InferenceSession, NodeArg
from axzoo.runtime.geometry import Geometry

Array = NDArray[Any]

K_OUT, V_OUT, OUT = "K_cache_out", "V_cache_out", "output"


@dataclass(frozen=True)
class Rows:
    """Tokens of one call: their shape group, positions [n], input [n, hidden_size], and the file's results, keys and
    values [n, kv_size] and output [n, hidden_size], all in the hidden state type."""

    group: int
    positions: NDArray[np.int64]
    given: Array
    keys: Array
    values: Array
    output: Array

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Probe:
    """A decode step whose cache the check chose: `cached_keys` and `cached_values` [m, kv_size] are visible, and the
    token's own key if `sees_itself`."""

    rows: Rows
    cached_keys: Array
    cached_values: Array
    sees_itself: bool = True


@dataclass
class _Recorder:
    """A session that records the calls of a Decoder."""

    session: InferenceSession
    calls: list[Rows] = field(default_factory=list)

    @property
    def num_shape_groups(self) -> int:
        return self.session.num_shape_groups

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return self.session.get_inputs(shape_group)

    def get_outputs(self, shape_group: int = 0) -> list[NodeArg]:
        return self.session.get_outputs(shape_group)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[Array]:
        results = self.session.run([K_OUT, V_OUT, OUT], input_feed, run_options, shape_group)
        keys, values, output = (result[0] for result in results)
        positions = input_feed["indices"][0].astype(np.int64)
        self.calls.append(Rows(shape_group, positions, input_feed["input"][0].copy(), keys, values, output))
        return results


class LayerFile:
    """A layer's file, loaded for a check."""

    def __init__(self, session: InferenceSession) -> None:
        self._recorder = _Recorder(session)
        self._decoder = Decoder([self._recorder])
        self.geometry: Geometry = self._decoder.geometry
        self.groups_run: set[int] = set()

    @property
    def longest(self) -> int:
        """The number of tokens that reach every prefill group, at least 1."""
        reach = self.geometry.prefill_groups * self.geometry.prefill_token_num
        return max(1, min(reach, self.geometry.max_token_len))

    def read(self, given: Array) -> list[Rows]:
        """Appends the tokens of given [n, hidden_size] to an empty context. Padding is left out of the result."""
        self._decoder.rewind(0)
        self._recorder.calls.clear()
        self._decoder.prefill(given)
        calls, start = [], 0
        for call in self._recorder.calls:
            count = min(len(call), len(given) - start)
            calls.append(Rows(call.group, *(part[:count] for part in _parts(call))))
            start += count
        self.groups_run |= {call.group for call in calls}
        return calls

    def decode_again(self, given: Array, position: int) -> Rows:
        """Decodes given [1, hidden_size] after the first `position` tokens of the context."""
        self._decoder.rewind(position)
        self._recorder.calls.clear()
        self._decoder.decode(given)
        self.groups_run.add(0)
        return self._recorder.calls[-1]

    def probe(self, given: Array, position: int, keys: Array, values: Array, sees_itself: bool = True) -> Probe:
        """Decodes given [1, hidden_size] at `position` with the cached keys and values [m, kv_size]."""
        geometry, dtype = self.geometry, given.dtype
        cache = np.zeros((2, 1, geometry.kv_cache_num, geometry.kv_cache_size), dtype)
        cache[0, 0, : len(keys)], cache[1, 0, : len(values)] = keys, values
        mask = full_mask((1, 1, geometry.max_token_len + 1), dtype)
        mask[..., : len(keys)] = 0
        if sees_itself:
            mask[..., -1] = 0
        feed = {
            "K_cache": cache[0],
            "V_cache": cache[1],
            "indices": np.full((1, 1), position, np.uint32),
            "input": given[None],
            "mask": mask,
        }
        self._recorder.calls.clear()
        self._recorder.run(None, feed, shape_group=0)
        self.groups_run.add(0)
        return Probe(self._recorder.calls[-1], keys, values, sees_itself)


def _parts(rows: Rows) -> tuple[Array, ...]:
    return rows.positions, rows.given, rows.keys, rows.values, rows.output
