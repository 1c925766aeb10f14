"""A repository in the hub's cache on this machine, which is used in place while HF_HUB_OFFLINE is set."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from axzoo.checkpoint.local_files import LocalCheckpoint, check_files, list_folder, require_contained
from axzoo.checkpoint.selection import select_files
from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, read_bytes
from axzoo.fetch.converted import convert_checkpoint, is_converted, prepare_output
from axzoo.fetch.sources import FetchedFile, FetchedFiles, HubSource, hashed_file, write_receipt

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_cached(source: HubSource, output: Path) -> None:
    """Writes the receipt for the snapshot in the cache that HF_HOME or HF_HUB_CACHE gives.

    Raises AxzooError when the commit is not there, or not all of its files are.
    """
    commit, snapshot = _snapshot(source)
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
    try:
        path = _snapshot(source)[1] / "config.json"
    except AxzooError:
        return None
    return path if path.is_file() else None


def _snapshot(source: HubSource) -> tuple[str, Path]:
    """The commit of `source.revision` and its folder in the cache."""
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    repository = cache / repo_folder_name(repo_id=source.repo, repo_type="model")
    commit, reference = source.revision, repository / "refs" / source.revision
    if not _COMMIT.fullmatch(commit) and reference.resolve().is_relative_to(repository / "refs"):
        commit = read_bytes(reference, 4096).decode(errors="replace").strip() if has_file(reference) else ""
    snapshot = repository / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise AxzooError(
            f"{source.repo} at {source.revision} is not in the hub's cache {cache}, and HF_HUB_OFFLINE is set: unset "
            f"that to fetch it, or run `hf download {source.repo} --revision {source.revision}` with the same cache"
        )
    return commit, snapshot


def _verified(path: Path) -> FetchedFile:
    """The record of a file in the cache. The name of a large file's blob is its sha256."""
    record, blob = hashed_file(path), path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != record.sha256:
        raise AxzooError(f"{blob} in the hub's cache is damaged: remove it and download {path.name} again")
    return record
