"""The host backend: standard ONNX in the board's container, for the CPU of any computer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from axzoo.backends import Backend, Needs, Order
from axzoo.core.errors import AxzooError
from axzoo.core.fingerprint import fingerprint
from axzoo.parts.groups import ShapeGroup
from axzoo.parts.kind import PartKind
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import Recipe

_BASE_MB, _BLOCK_MB = 120, 240
"""Python with numpy and onnx, and a block of rows while it is encoded."""

_SCALES = 1.1
"""Stored weights with their scales and tables, by the weights alone."""

_CALIBRATED_MB = 8000
"""A layer of calibration-aware rounding: the Hessian of a down_proj 11,008 wide and its inverse in fp64."""

_UNKNOWN_MB = {"layer": 1000}
_UNKNOWN_LARGE_MB = 3000
"""For entries that state no sizes: a layer 4096 wide, and a post layer of 128,256 tokens, with room."""

_START_MINUTES = 10
_SECONDS_PER_MILLION, _CALIBRATED_SECONDS_PER_MILLION = 0.3, 20.0
"""For a million weights: more than ten times what SmolLM2-135M takes on two cores (docs/performance.md), since nodes of
a cluster differ."""

_ASSUMED_PARAMETERS = 9_000_000_000
"""Of an entry that states no sizes."""


class HostBackend(Backend):
    """Compiles in this process, the same file for every chip."""

    name = "host"
    runs_here = True

    def identity(self, chip: str) -> dict[str, Any]:
        return {"code": fingerprint("axzoo.backends.host.compiler")}

    def refusal(self, model_type: str, chip: str, recipe: Recipe) -> str | None:
        return None

    def needs(self, kind: PartKind, recipe: Recipe, parameters: int | None, parts: int = 1) -> Needs:
        calibrated = kind.is_calibrated(recipe)
        seconds = _CALIBRATED_SECONDS_PER_MILLION if calibrated else _SECONDS_PER_MILLION
        weights = _ASSUMED_PARAMETERS if parameters is None else parameters * parts
        minutes = _START_MINUTES + math.ceil(weights / 1e6 * seconds / 60)
        if calibrated:
            return Needs(_CALIBRATED_MB, minutes)
        if parameters is None:
            return Needs(_UNKNOWN_MB.get(kind.name, _UNKNOWN_LARGE_MB), minutes)
        stored = FORMATS[kind.weight_type(recipe)].bytes_stored * parameters
        return Needs(round(_BASE_MB + _BLOCK_MB + _SCALES * stored / 1e6), minutes)

    def compile(self, orders: Iterable[Order], folder: Path) -> Iterator[Mapping[str, Any]]:
        from axzoo.backends.host.compiler import compile_layer, compile_post

        for order in orders:
            if order.part.kind == "layer":
                compiled = compile_layer(order.spec, order.recipe, order.shapes, order.read, order.stored)
            elif order.part.kind == "post":
                compiled = compile_post(order.spec, order.recipe, order.shapes, order.read)
            else:
                raise AxzooError(f"the host backend does not compile parts of kind {order.part.kind!r}")
            with order.output.open("wb") as file:
                file.writelines(compiled.pieces)
            about = compiled.about
            del order, compiled  # weights: the next order must not find them in memory
            yield about

    def contradictions(
        self, path: Path, kind: PartKind, groups: tuple[ShapeGroup, ...], chip: str, about: Mapping[str, Any]
    ) -> Iterator[str]:
        from axzoo.backends.host.inspection import contradictions

        yield from contradictions(path, kind.name, groups, about)


BACKEND = HostBackend()
