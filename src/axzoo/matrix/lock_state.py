"""made_from.json: what a model's lock was made from, and whether that still is what it would be made from.

The lock is a checkpoint in Snakemake's sense, and Snakemake knows that a checkpoint is up to date only when it has
planned every job that asks for it; then it plans them all a second time. A lock that is known to be up to date need not
be asked for.

It is the one file of a lock that Snakemake knows the rule of, and it is written anew each time; of the others, only
those that changed are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, sha256_of, write_json
from axzoo.core.fingerprint import fingerprint
from axzoo.fetch.sources import RECEIPT, FolderSource, is_complete

if TYPE_CHECKING:
    from axzoo.matrix.build import Build


MADE_FROM = "made_from.json"


def lock_code(model_type: str) -> str:
    """The fingerprint of the code that decides a lock's content."""
    return fingerprint("axzoo.parts.lock", f"axzoo.model.families.{model_type}")


def facts(
    source: Path,
    model_type: str,
    num_hidden_layers: int,
    ignore_config_keys: Collection[str],
    model_config: Path | None,
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """Everything that decides a lock's content or whether there is one: the receipt `source`, which stands for the
    checkpoint, what the matrix says of the model, and the code. Raises OSError when a file is missing."""
    return {
        "source": sha256_of(source),
        "model_type": model_type,
        "num_hidden_layers": num_hidden_layers,
        "ignore_config_keys": sorted(ignore_config_keys),
        "model_config": None if model_config is None else sha256_of(model_config),
        "sizes": dict(sizes),
        "code": lock_code(model_type),
    }


def write_made_from(folder: Path, made_from: dict[str, Any]) -> None:
    """Writes it into a lock's folder, after all other files."""
    write_json(folder / MADE_FROM, made_from)


def is_locked(build: Build) -> bool:
    """Whether making the build's lock again would change nothing: its files are there, from a checkpoint, a matrix and
    code that are still the same. A local checkpoint is the same when no file of it, nor the folder itself, is younger
    than the receipt."""
    receipt = build.checkpoint / RECEIPT
    try:
        now = facts(
            receipt,
            build.model_type,
            build.num_hidden_layers,
            build.ignore_config_keys,
            None if build.model_config is None else Path(build.model_config),
            dict(build.sizes),
        )
        return (
            read_json(build.locks / MADE_FROM) == now
            and {Path(path).name for path in build.lock_files} <= {path.name for path in build.locks.iterdir()}
            and is_complete(build.checkpoint, build.source)
            and all(Path(path).stat().st_mtime_ns < receipt.stat().st_mtime_ns for path in _local(build))
        )
    except (AxzooError, OSError):
        return False  # for Snakemake to find out


def _local(build: Build) -> list[str]:
    """The folder of a local checkpoint, which files come into and go from, and its files."""
    return [build.source.path, *build.source_files] if isinstance(build.source, FolderSource) else []
