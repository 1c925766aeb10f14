"""Check level 1 of a whole bundle: its layers, post layer and embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from axzoo.bundle.manifest import Manifest
from axzoo.calibrate.parallel import single_core
from axzoo.check.layers import LayerCheck, check_layers
from axzoo.check.post_layer import FileCheck, check_embedding, check_post
from axzoo.parts.checkpoint_oracle import checkpoint_oracle, part_weights
from axzoo.parts.kind import PartId
from axzoo.parts.kinds import kind_of
from axzoo.parts.lock_index import read_index
from axzoo.runtime.bundle_folder import Bundle


@dataclass(frozen=True)
class Level1:
    """The checks of all files of a bundle, and what concerns the bundle as a whole."""

    layers: tuple[LayerCheck, ...]
    files: tuple[FileCheck, ...]
    of_bundle: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """Why the files are not right; empty if they are."""
        layers = [f"layer {check.layer}: {fault}" for check in self.layers for fault in check.faults]
        files = [f"{check.file}: {fault}" for check in self.files for fault in check.faults]
        return [*self.of_bundle, *layers, *files]


def check_files(
    bundle: Bundle,
    manifest: Manifest,
    locks: Path,
    source: Path,
    ids: Sequence[int],
    on_layer: Callable[[LayerCheck], None] = lambda _check: None,
) -> Level1:
    """Checks the files of a bundle against the checkpoint locked in `locks`. `ids` are the tokens of the prompt.

    A file that cannot be loaded is a fault, and the others are still checked. Raises AxzooError when the prompt does
    not fit, or the checkpoint cannot be read.
    """
    recipe, oracle = manifest.recipe, checkpoint_oracle(locks, source, manifest.recipe.positions)
    if recipe.embedding_scale == "host":
        oracle = oracle.scaled_by_host()
    layers = []
    with single_core(), ThreadPoolExecutor(1) as pool:
        for check in check_layers(bundle, oracle, ids, recipe):
            on_layer(check)
            layers.append(check)
        embedding = pool.submit(check_embedding, bundle.embedding, part_weights(locks, source, PartId("embed")))
        post = check_post(bundle.post, oracle.post_weights(), oracle.spec.post, recipe)
    files = (post, embedding.result())
    faults = []
    if manifest.spec != read_index(locks).spec:
        faults.append("the manifest describes another model than the lock: build the bundle again")
    if len(layers) != oracle.spec.num_hidden_layers:
        faults.append(f"{len(layers)} layers were checked, but the model has {oracle.spec.num_hidden_layers}")
    read = {path.name for path in (*bundle.layers, bundle.post, bundle.embedding)}
    unread = [name for name in sorted(manifest.parts.keys() - read) if _is_covered(manifest, name)]
    faults += [f"{name} is a part of the bundle, but was not read" for name in unread]
    return Level1(tuple(layers), files, tuple(faults))


def _is_covered(manifest: Manifest, name: str) -> bool:
    """Whether this check or level 2 has to read a part's file. Other kinds have checks of their own, or none."""
    part = manifest.part_ids.get(name)
    return part is None or not {"check_layers", "check_generation"}.isdisjoint(kind_of(part.kind).checks)
