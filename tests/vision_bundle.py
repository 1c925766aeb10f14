"""Builds bundles of `tiny_vision`'s checkpoints."""

from __future__ import annotations

from pathlib import Path

import tiny_vision
from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.bundle.completion import BundlePlan, complete_bundle
from axzoo.core.files import write_json
from axzoo.parts.kinds import kind_of, part_ids
from axzoo.parts.lock import make_lock, write_lock
from axzoo.weights.recipe import Recipe

EXACT = Recipe(
    weight_type="fp32",
    post_weight_type="fp32",
    hidden_state_type="fp32",
    prefill_len=32,
    kv_cache_len=127,
    last_kv_cache_len=(32, 64),
    embedding_scale="host",
    image_size=70,
)


def make_bundle(checkpoint: Path, root: Path, recipe: Recipe) -> Path:
    """Build every part and the bundle."""
    locks, folder, source = root / "locks", root / "bundle", root / "source.json"
    write_json(source, {"source": {"path": str(checkpoint)}, "root": str(checkpoint), "files": {}})
    write_lock(make_lock(checkpoint, "minicpmv", 3), locks, checkpoint, {})
    files = []
    for part in part_ids(tiny_vision.spec(), recipe):
        name = kind_of(part.kind).file_name("minicpmv", recipe, part.index)
        files.append(PartFile(locks / part.lock_file, folder / name, root / "receipts" / f"{part.name}.json"))
    build_parts(PartJob(files, source, root / "store", recipe, "host", "AX650"))
    receipts = tuple(file.receipt for file in files)
    complete_bundle(BundlePlan(folder, "v", "v", "AX650", "host", recipe, False, locks, source, receipts))
    return folder
