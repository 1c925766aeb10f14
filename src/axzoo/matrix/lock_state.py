"""made_from.json: the inputs of a model's lock, which show whether the lock is up to date.

The lock rule is a Snakemake checkpoint. Snakemake plans all jobs that depend on a checkpoint twice, even if it is up to
date. If made_from.json shows that it is, jobs depend on the lock's files directly instead.

made_from.json is the only output that the lock rule declares, so it is always rewritten; the other files of a lock are
rewritten only if their content changes.
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
    """The fingerprint of the code that determines a lock's content."""
    return fingerprint("axzoo.parts.lock", f"axzoo.model.families.{model_type}")


def facts(
    source: Path,
    model_type: str,
    num_hidden_layers: int,
    ignore_config_keys: Collection[str],
    ignore_tensors: Collection[str],
    model_config: Path | None,
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """The inputs of a lock: the fetch receipt `source`, which represents the checkpoint, the settings of the matrix
    entry, and the code. Raises OSError when a file is missing."""
    return {
        "source": sha256_of(source),
        "model_type": model_type,
        "num_hidden_layers": num_hidden_layers,
        "ignore_config_keys": sorted(ignore_config_keys),
        "ignore_tensors": sorted(ignore_tensors),
        "model_config": None if model_config is None else sha256_of(model_config),
        "sizes": dict(sizes),
        "code": lock_code(model_type),
    }


def write_made_from(folder: Path, made_from: dict[str, Any]) -> None:
    """Writes made_from.json to a lock's folder. Call it after all other files are written."""
    write_json(folder / MADE_FROM, made_from)


def is_locked(build: Build) -> bool:
    """Whether the build's lock is complete and up to date: checkpoint, matrix entry and code are unchanged. A local
    checkpoint is unchanged if the folder and all its files are older than the receipt."""
    receipt = build.checkpoint / RECEIPT
    try:
        now = facts(
            receipt,
            build.model_type,
            build.num_hidden_layers,
            build.ignore_config_keys,
            build.ignore_tensors,
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
        return False  # let Snakemake decide


def _local(build: Build) -> list[str]:
    """The folder of a local checkpoint, whose mtime changes when files are added or removed, and its files."""
    return [build.source.path, *build.source_files] if isinstance(build.source, FolderSource) else []
