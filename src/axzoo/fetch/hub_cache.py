"""A repository in the hub's cache on this machine, which is used in place while HF_HUB_OFFLINE is set."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from huggingface_hub import constants

from axzoo.checkpoint.local_files import LocalCheckpoint, check_files, list_folder, require_contained
from axzoo.checkpoint.selection import select_files
from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, read_bytes
from axzoo.fetch.sources import FetchedFile, FetchedFiles, HubSource, hashed_file, write_receipt

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_cached(source: HubSource, output: Path) -> None:
    """Writes the receipt for the snapshot in the cache that HF_HOME or HF_HUB_CACHE gives.

    Raises AxzooError when the commit is not there, or not all of its files are.
    """
    from axzoo.fetch.converted import convert_checkpoint, is_converted, prepare_output

    cached = snapshot_of(source)
    if cached is None:
        raise AxzooError(
            f"{source.repo} at {source.revision} is not in the hub's cache {_cache()}, and HF_HUB_OFFLINE is set: "
            f"unset that to fetch it, or run `hf download {source.repo} --revision {source.revision}` with the same "
            "cache"
        )
    commit, snapshot = cached
    online = "unset HF_HUB_OFFLINE to fetch it"
    try:
        found = LocalCheckpoint(snapshot, select_files(list_folder(snapshot), source.file))
        check_files(snapshot, found.files.names)
        require_contained(snapshot, found.files.small)
    except AxzooError as error:
        raise AxzooError(f"{source.repo} in the hub's cache cannot be used: {error}; or {online}") from None
    records = {name: _verified(snapshot / name) for name in found.files.names}
    prepare_output(output, found.files)
    if is_converted(found.files):
        fetched = FetchedFiles(convert_checkpoint(found, output))
    else:
        fetched = FetchedFiles(records, str(snapshot))
    logger.info(f"using {len(records)} files of {snapshot} in place, because HF_HUB_OFFLINE is set")
    write_receipt(output, source, fetched, commit=commit)


def cached_config(source: HubSource) -> Path | None:
    """The config.json of a repository in the cache; None if it is not there."""
    found = snapshot_of(source)
    path = None if found is None else found[1] / "config.json"
    return path if path is not None and has_file(path) else None


def fixed_snapshot(source: HubSource) -> Path | None:
    """The folder of `source` in the cache if a fetch would find the same files: a commit cannot change, and a branch
    or tag is looked up in the cache while HF_HUB_OFFLINE is set. None otherwise."""
    if not _COMMIT.fullmatch(source.revision) and not constants.HF_HUB_OFFLINE:
        return None
    cached = snapshot_of(source)
    return None if cached is None else cached[1]


def snapshot_of(source: HubSource) -> tuple[str, Path] | None:
    """The commit of `source.revision` and its folder in the cache; None if it is not there."""
    repository = _cache() / f"models--{source.repo.replace('/', '--')}"
    commit, reference = source.revision, repository / "refs" / source.revision
    if not _COMMIT.fullmatch(commit) and reference.resolve().is_relative_to(repository / "refs"):
        commit = read_bytes(reference, 4096).decode(errors="replace").strip() if has_file(reference) else ""
    snapshot = repository / "snapshots" / commit
    return (commit, snapshot) if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def _verified(path: Path) -> FetchedFile:
    """The record of a file in the cache. The name of a large file's blob is its sha256."""
    record, blob = hashed_file(path), path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != record.sha256:
        raise AxzooError(f"{blob} in the hub's cache is damaged: remove it and download {path.name} again")
    return record
