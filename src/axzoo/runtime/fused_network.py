"""All layers as one session: fast mode's stand-in for the network that calls layer after layer.

The files are joined when they are loaded. A call takes as many tokens as there are, and writes their keys and values
into the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo import heap
from axzoo.dtypes import NUMPY_DTYPES
from axzoo.engine import run_bound, shared_options
from axzoo.errors import AxzooError
from axzoo.fast.blocks import BLOCKS
from axzoo.fast.two_bytes import TWO_BYTES, is_exact
from axzoo.runtime.decoder import HiddenHook, require_room
from axzoo.runtime.fused_caches import bind_input, bind_output, one_context
from axzoo.runtime.fused_files import FusedFiles, hidden
from axzoo.runtime.network import Outputs

_PROMPT = 8
"""Tokens from which on the prompts' session reads: 8 take as long there as in the other, 16 two thirds, 128 half."""

_TWICE = 2.25
"""Bytes in memory for a byte of int8 weights in a file: 1.25 with the scales of blocks, and 1 for prompts.

A byte of int4 becomes 3.5, so what is refused by this would not fit.
"""

_NOT_SHOWN = "fast mode does not show the layers' hidden states: load the model in exact mode"


class FusedNetwork:
    """What Layered is, but for the hidden states, which do not leave the session.

    With `prompts_apart` the weights are kept a second time, for a session of TWO_BYTES that prompts are read with. It
    is left out where some weights are none that this kernel fits, or the processor computes it inexactly.

    `on_step` is called after each layer and the post layer. Raises AxzooError when a file is missing or damaged, the
    layers do not belong together, or this machine could never hold the weights twice.
    """

    def __init__(self, paths: Sequence[Path], post: Path, on_step: Callable[[], None], prompts_apart: bool) -> None:
        files = FusedFiles(paths, post, BLOCKS, on_step)
        self.geometry = files.geometry
        self._state = files.state
        self._dtype = NUMPY_DTYPES[files.state]
        self._outputs = files.outputs
        self.gives_topk = any(tensor.name == "indices" for tensor in self._outputs)
        shares = files.has_shared_caches
        apart = prompts_apart and files.suit(TWO_BYTES) and is_exact(shared_options())
        if apart:
            _require_memory((*paths, post))
        self._sessions = [files.load()]
        del files  # with the weights, of which the session has its own: memory never holds what both are made of
        if apart:
            self._sessions.append(FusedFiles(paths, post, TWO_BYTES, lambda: None).load())
        heap.give_back()
        on_step()
        self._caches = one_context(self._sessions, shares, len(paths), self.geometry, self._state)
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
        which = -1 if len(rows) >= _PROMPT else 0  # the last session is the prompts', where they have one
        state = np.ascontiguousarray(rows, self._dtype)[None]
        outputs = {tensor.name: np.empty(tensor.shape, NUMPY_DTYPES[tensor.dtype]) for tensor in self._outputs}
        binding = self._caches[which].binding(self.used, len(rows))
        bind_input(binding, hidden(0), state, self._state)
        for tensor in self._outputs:
            bind_output(binding, f"post/{tensor.name}", outputs[tensor.name], tensor.dtype)
        run_bound(self._sessions[which], binding, "the model's files, joined,")
        self.used += len(rows)
        return outputs


def _require_memory(files: Sequence[Path]) -> None:
    """Raises AxzooError when the weights of the files, twice, are more than the machine has."""
    needed = int(_TWICE * sum(path.stat().st_size for path in files))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise AxzooError(
            f"weights kept a second time for prompts take {needed >> 20} MB with the first, and this machine has "
            f"{memory >> 20} MB: use --mode fast"
        )
