"""The seam where a compiler plugs in: one file per backend, chosen by name.

A backend turns a part's spec and tensors into the bytes of an .axmodel. `host` writes standard ONNX; a vendor's
compiler would write its own payload into the same container.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

from axzoo.core.errors import AxzooError

if TYPE_CHECKING:
    from axzoo.backends.host.compiler import Compiled, RowReader
    from axzoo.model.spec import LayerSpec, PostSpec
    from axzoo.weights.recipe import Recipe
    from axzoo.weights.stored import StoredWeight


class Backend(Protocol):
    """What a backend file offers."""

    def compile_layer(
        self,
        spec: LayerSpec,
        recipe: Recipe,
        shapes: Mapping[str, tuple[int, ...]],
        read: RowReader,
        stored: Mapping[str, StoredWeight] | None = None,
    ) -> Compiled: ...

    def compile_post(
        self, spec: PostSpec, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], read: RowReader
    ) -> Compiled: ...


def load_backend(name: str) -> Backend:
    """The backend file of that name. Raises AxzooError when there is none."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise AxzooError(f"backend {name!r} does not exist; there is: {', '.join(known)}")
    return cast(Backend, importlib.import_module(f"axzoo.backends.{name}.compiler"))
