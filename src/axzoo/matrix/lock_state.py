"""made_from.json: the inputs of a model's lock, which show whether the lock is up to date.

The lock rule is a Snakemake checkpoint. Snakemake plans all jobs that depend on a checkpoint twice, even if it is up to
date. If made_from.json shows that it is, jobs depend on the lock's files directly instead.

made_from.json is the only output that the lock rule declares, so it is always rewritten; the other files of a lock are
rewritten only if their content changes. It lists them with sha256 and stamp, so that jobs depend on their content and a
lost or edited one is written again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, sha256_of, write_json
from axzoo.core.fingerprint import fingerprint
from axzoo.core.stamps import digest_of, recorded
from axzoo.fetch.sources import RECEIPT, content_facts
from axzoo.parts.kind import PartId
from axzoo.parts.lock_index import INDEX

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
    entry, and the code. Raises OSError or AxzooError when a file is missing or damaged."""
    try:
        checkpoint = content_facts(read_json(source))
    except (KeyError, TypeError, AttributeError):
        raise AxzooError(f"{source} is damaged: remove it and fetch the checkpoint again") from None
    return {
        "source": digest_of(checkpoint),
        "model_type": model_type,
        "num_hidden_layers": num_hidden_layers,
        "ignore_config_keys": sorted(ignore_config_keys),
        "ignore_tensors": sorted(ignore_tensors),
        "model_config": None if model_config is None else sha256_of(model_config),
        "sizes": dict(sizes),
        "code": lock_code(model_type),
    }


def write_made_from(folder: Path, made_from: dict[str, Any], parts: Iterable[PartId]) -> None:
    """Writes made_from.json to a lock's folder: `made_from`, and the record of each file of the lock. Call it after all
    other files are written."""
    names = [INDEX, *(part.lock_file for part in parts)]
    write_json(folder / MADE_FROM, made_from | {"files": {name: recorded(folder / name) for name in names}})


def read_made_from(folder: Path) -> dict[str, Any]:
    """made_from.json of a lock's folder; empty if it is missing or damaged."""
    try:
        content = read_json(folder / MADE_FROM)
    except (AxzooError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def facts_now(build: Build) -> dict[str, Any] | None:
    """The inputs that the build's lock would have now; None if one of them cannot be read."""
    try:
        return facts(
            build.checkpoint / RECEIPT,
            build.model_type,
            build.num_hidden_layers,
            build.ignore_config_keys,
            build.ignore_tensors,
            None if build.model_config is None else Path(build.model_config),
            dict(build.sizes),
        )
    except (AxzooError, OSError):
        return None
