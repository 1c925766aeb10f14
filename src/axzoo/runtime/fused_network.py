"""All layers as one session: fast mode's stand-in for the network that calls layer after layer.

The files are joined when they are loaded. A call takes as many tokens as there are, and writes their keys and values
into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.axmodel import Header
from axzoo.dtypes import NUMPY_DTYPES
from axzoo.engine import NodeArg, node_arg, run_bound, shared_options
from axzoo.errors import AxzooError
from axzoo.fast.joined import Joined
from axzoo.runtime.decoder import HiddenHook, one_geometry, require_room, require_same_state
from axzoo.runtime.fused_caches import Caches, CopiedCaches, SharedCaches, bind_input, bind_output
from axzoo.runtime.network import Outputs

_NOT_SHOWN = "fast mode does not show the layers' hidden states: load the model in exact mode"


@dataclass(frozen=True)
class _Described:
    """A layer file's shape groups, without a session."""

    header: Header

    @property
    def num_shape_groups(self) -> int:
        return len(self.header.groups)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [node_arg(tensor) for tensor in self.header.groups[shape_group].inputs]


class FusedNetwork:
    """What Layered is, but for the hidden states, which do not leave the session.

    `on_step` is called after each layer and the post layer. Raises AxzooError when a file is missing or damaged, or the
    layers do not belong together.
    """

    def __init__(self, paths: Sequence[Path], post: Path, on_step: Callable[[], None]) -> None:
        joined = Joined()
        described = []
        for index, path in enumerate(paths):
            names = {"indices": "indices", "mask": "mask", "input": _hidden(index), "output": _hidden(index + 1)}
            described.append(_Described(joined.add(path, path, f"{index}/", names)))
            on_step()
        self.geometry = one_geometry(described)
        self._state = described[0].header.groups[0].inputs[0].dtype
        self._dtype = NUMPY_DTYPES[self._state]
        joined.take_last(_hidden(len(paths)), "hidden/last")
        head = joined.add(post, post, "post/", {"input": "hidden/last"}).groups[0]
        require_same_state(post, [node_arg(tensor) for tensor in head.inputs], self.geometry)
        self._outputs = head.outputs
        self.gives_topk = any(tensor.name == "indices" for tensor in self._outputs)
        shared = joined.share_caches(self.geometry.kv_cache_num)
        self._session = joined.session(shared_options())
        on_step()
        self._caches: Caches = (
            SharedCaches(self._session)
            if shared
            else CopiedCaches(self._session, len(paths), self.geometry, self._state)
        )
        self.used = 0

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens of the context."""
        self.used = length

    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs:
        """Appends tokens, given as embedding rows [n, H], to the context.

        Raises AxzooError when there are none, or more than the context holds, and where `on_hidden` is given.
        """
        require_room(self.geometry, self.used, len(rows))
        if on_hidden:
            raise AxzooError(_NOT_SHOWN)
        chunk = self.geometry.chunk_len
        for start in range(0, len(rows), chunk):
            outputs = self._run(rows[start : start + chunk])
        return outputs

    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs:
        """Appends one token, given as its embedding row [1, H]. Raises as `prefill`."""
        return self.prefill(row, on_hidden)

    def post(self, hidden: NDArray[Any]) -> Outputs:
        raise AxzooError(_NOT_SHOWN)

    def _run(self, rows: NDArray[Any]) -> Outputs:
        """One call: rows [n, H] -> what the post layer gives of the last one."""
        hidden = np.ascontiguousarray(rows, self._dtype)[None]
        outputs = {tensor.name: np.empty(tensor.shape, NUMPY_DTYPES[tensor.dtype]) for tensor in self._outputs}
        binding = self._caches.binding(self.used, len(rows))
        bind_input(binding, _hidden(0), hidden, self._state)
        for tensor in self._outputs:
            bind_output(binding, f"post/{tensor.name}", outputs[tensor.name], tensor.dtype)
        run_bound(self._session, binding, "the model's files, joined,")
        self.used += len(rows)
        return outputs


def _hidden(layer: int) -> str:
    """The hidden state that layer takes, or the last one gives."""
    return f"hidden/{layer}"
