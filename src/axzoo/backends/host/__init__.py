"""The host backend: compiles standard ONNX models, packaged as .axmodel files, that run on any CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from axzoo.backends import Backend, Needs, Order, job_minutes
from axzoo.core.errors import AxzooError
from axzoo.core.fingerprint import fingerprint
from axzoo.parts.groups import ShapeGroup
from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import kind_of
from axzoo.parts.kinds.vision import Vision
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import Recipe

_BASE_MB, _BLOCK_MB = 120, 240
"""Python with numpy and onnx, and one block of rows while it is encoded."""

_SIZE_WITH_SCALES = 1.1
"""Size of the stored weights with scales and tables, relative to the weights alone."""

_UNKNOWN_SIZE_MB = {"layer": 1000}
_UNKNOWN_SIZE_LARGE_MB = 3000
"""For entries without `sizes`: enough for a layer with hidden_size 4096, and for a post layer with 128,256 tokens."""

_SECONDS_PER_MILLION = 0.3
"""Per million weights. More than ten times the time SmolLM2-135M takes on two cores (docs/performance.md), because
cluster nodes differ."""


class HostBackend(Backend):
    """Compiles in this process. The compiled files do not depend on the chip."""

    name = "host"
    runs_here = True

    def identity(self, kind: PartKind, chip: str) -> dict[str, Any]:
        return {
            "code": fingerprint(f"axzoo.backends.host.{'vision_graph' if isinstance(kind, Vision) else 'compiler'}")
        }

    def refusal(self, model_type: str, chip: str, recipe: Recipe) -> str | None:
        return None

    def needs(self, kind: PartKind, recipe: Recipe, parameters: int | None, parts: int = 1) -> Needs:
        minutes = job_minutes(None if parameters is None else parameters * parts, _SECONDS_PER_MILLION)
        if parameters is None:
            return Needs(_UNKNOWN_SIZE_MB.get(kind.name, _UNKNOWN_SIZE_LARGE_MB), minutes)
        stored = FORMATS[kind.weight_type(recipe)].bytes_stored * parameters
        return Needs(round(_BASE_MB + _BLOCK_MB + _SIZE_WITH_SCALES * stored / 1e6), minutes)

    def compile(self, orders: Iterable[Order], folder: Path) -> Iterator[Mapping[str, Any]]:
        from axzoo.backends.host.compiler import compile_layer, compile_post
        from axzoo.backends.host.vision_graph import compile_vision

        for order in orders:
            if order.part.kind == "layer":
                compiled = compile_layer(order.spec, order.recipe, order.shapes, order.read, order.stored)
            elif order.part.kind == "post":
                compiled = compile_post(order.spec, order.recipe, order.shapes, order.read)
            elif isinstance(kind := kind_of(order.part.kind), Vision):
                compiled = compile_vision(kind.name, order.spec, kind.stages, order.recipe, order.shapes, order.read)
            else:
                raise AxzooError(f"the host backend does not compile parts of kind {order.part.kind!r}")
            with order.output.open("wb") as file:
                file.writelines(compiled.pieces)
            about = compiled.about
            del order, compiled  # free the weights before the next order is read
            yield about

    def contradictions(
        self, path: Path, kind: PartKind, groups: tuple[ShapeGroup, ...], chip: str, about: Mapping[str, Any]
    ) -> Iterator[str]:
        from axzoo.backends.host.inspection import contradictions

        yield from contradictions(path, kind.name, groups, about)


BACKEND = HostBackend()
