"""A layer that is in memory only while it runs: ax-llm's --dynamic_load_axmodel_layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from axzoo.engine import InferenceSession, Mode, NodeArg


class SessionOnDemand:
    """A session of the file `path`, loaded anew for every run. Raises AxzooError as InferenceSession does."""

    def __init__(self, path: Path, mode: Mode = "exact") -> None:
        self._path = path
        self._mode = mode
        session = InferenceSession(path, mode=mode)
        groups = range(session.num_shape_groups)
        self._inputs = [session.get_inputs(group) for group in groups]
        self._outputs = [session.get_outputs(group) for group in groups]

    @property
    def num_shape_groups(self) -> int:
        return len(self._inputs)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return self._inputs[shape_group]

    def get_outputs(self, shape_group: int = 0) -> list[NodeArg]:
        return self._outputs[shape_group]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, NDArray[Any]],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[NDArray[Any]]:
        return InferenceSession(self._path, mode=self._mode).run(output_names, input_feed, run_options, shape_group)
