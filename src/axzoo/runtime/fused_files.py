"""A model's files, joined into one graph of all layers and the post layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from axzoo.axmodel import Header
from axzoo.engine import NodeArg, node_arg, shared_options
from axzoo.fast.joined import Joined
from axzoo.fast.product import Kernel
from axzoo.runtime.decoder import one_geometry, require_same_state


@dataclass(frozen=True)
class _Described:
    """A layer file's shape groups, without a session."""

    header: Header

    @property
    def num_shape_groups(self) -> int:
        return len(self.header.groups)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [node_arg(tensor) for tensor in self.header.groups[shape_group].inputs]


class FusedFiles:
    """Files that are joined, not loaded yet; `kernel` computes the products it fits.

    `on_step` is called after each layer. Raises AxzooError when a file is missing or damaged, or the layers do not
    belong together.
    """

    def __init__(self, paths: Sequence[Path], post: Path, kernel: Kernel, on_step: Callable[[], None]) -> None:
        self._joined = Joined(kernel)
        described = []
        for index, path in enumerate(paths):
            names = {"indices": "indices", "mask": "mask", "input": hidden(index), "output": hidden(index + 1)}
            described.append(_Described(self._joined.add(path, path, f"{index}/", names)))
            on_step()
        self.geometry = one_geometry(described)
        self.state = described[0].header.groups[0].inputs[0].dtype
        self._joined.take_last(hidden(len(paths)), "hidden/last")
        head = self._joined.add(post, post, "post/", {"input": "hidden/last"}).groups[0]
        require_same_state(post, [node_arg(tensor) for tensor in head.inputs], self.geometry)
        self.outputs = head.outputs
        self.has_shared_caches = self._joined.share_caches(self.geometry.kv_cache_num)

    def suit(self, kernel: Kernel) -> bool:
        """Whether this kernel, too, would compute every product."""
        return self._joined.suits(kernel)

    def load(self) -> ort.InferenceSession:
        """Raises AxzooError when the graph is none that ONNX Runtime runs."""
        return self._joined.session(shared_options())


def hidden(index: int) -> str:
    """The hidden state that layer takes, or the last one gives."""
    return f"hidden/{index}"
