"""Fetches a repository of the Hugging Face hub at one commit, file by file."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, but not in __all__

from axzoo.checkpoint.listing import Listing
from axzoo.checkpoint.local_files import LocalCheckpoint
from axzoo.checkpoint.selection import select_files
from axzoo.core.errors import AxzooError
from axzoo.core.files import megabytes, read_json, require_space
from axzoo.fetch.converted import convert_checkpoint, is_converted, prepare_output
from axzoo.fetch.hub_cache import cached_config, fetch_cached
from axzoo.fetch.sources import PARTS, FetchedFiles, HubSource, hashed_file, write_receipt
from axzoo.fetch.transfer import RemoteFile, partial_path, receive, transfer

logger = logging.getLogger(__name__)


_TIMEOUT_S = 30.0

_MAX_INDEX_BYTES = 64 << 20
"""Limit of an index; that of DeepSeek-V3, the largest known, has 9 MB."""


def fetch_hub(source: HubSource, output: Path, endpoint: str | None = None) -> None:
    """Fetches the checkpoint of `source` into the folder `output`. Files that are already there and correct are kept.

    `endpoint` is the hub's address; None means HF_ENDPOINT, or else the public hub. The revision is resolved to a
    commit first, and all files are fetched at that commit. HF_TOKEN is used, and never sent to another host. With
    HF_HUB_OFFLINE, the commit is read from the hub's cache on this machine.

    Raises AxzooError when the hub refuses access, lists an unsafe file name, or the transfer fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        with _hub_errors(source):
            _fetch_online(source, output, endpoint)
    except OfflineModeIsEnabled:
        fetch_cached(source, output)


def _fetch_online(source: HubSource, output: Path, endpoint: str | None) -> None:
    repository = open_repository(source, endpoint)
    parts = output / PARTS
    files = select_files(repository.listing(parts), source.file)
    prepare_output(output, files)
    parts.mkdir(exist_ok=True)
    folder = parts if is_converted(files) else output
    remote = [repository.files[name] for name in files.names]
    missing = [file for file in remote if not file.matches(folder / file.name)]
    _log_plan(source, repository.commit, remote, missing)
    received = [path.stat().st_size for path in (partial_path(file, parts) for file in missing) if path.exists()]
    require_space(output, sum(file.size for file in missing) - sum(received))
    for file in missing:
        transfer(file, repository.url(file), repository.headers, folder / file.name, parts)
    if is_converted(files):
        records = convert_checkpoint(LocalCheckpoint(folder, files), output)
    else:
        records = {name: hashed_file(output / name) for name in files.names}
    write_receipt(output, source, FetchedFiles(records), commit=repository.commit)
    shutil.rmtree(parts)


@dataclass(frozen=True)
class Repository:
    """A repository at a commit: the files in its top folder, and the subfolders that contain a config.json."""

    source: HubSource
    commit: str
    endpoint: str | None
    files: Mapping[str, RemoteFile]
    nested: tuple[str, ...]
    headers: dict[str, str]

    def url(self, file: RemoteFile) -> str:
        return hf_hub_url(self.source.repo, file.name, revision=self.commit, endpoint=self.endpoint)

    def listing(self, parts: Path) -> Listing:
        """The files to choose from. JSON files that are read to choose are received into the folder `parts`."""
        shown = f"{self.source.repo} at {self.source.revision}"

        def read(name: str) -> Any:
            file = self.files[name]
            if file.size > _MAX_INDEX_BYTES:
                raise AxzooError(
                    f"{name} of {shown} has {file.size} bytes, but at most {_MAX_INDEX_BYTES} are plausible"
                )
            parts.mkdir(exist_ok=True)
            try:
                return json.loads(receive(file, self.url(file), self.headers, parts).read_bytes())
            except (ValueError, RecursionError) as error:
                raise AxzooError(f"{name} of {shown} is not valid JSON: {error}") from None

        remedy = "choose another revision, or ask the owner of the repository"
        choose = "name the one to convert with --file (in a matrix: `file:`)"
        return Listing(frozenset(self.files), read, shown, remedy, choose, lambda: self.nested)


def read_hub_config(source: HubSource, endpoint: str | None = None) -> Any:
    """The content of a repository's config.json, from the hub's cache on this machine or from the hub. Nothing else is
    downloaded.

    Raises AxzooError when the hub refuses access, or the repository has no valid config.json.
    """
    if (cached := cached_config(source)) is not None:
        return read_json(cached)
    try:
        with _hub_errors(source), tempfile.TemporaryDirectory() as folder:
            repository = open_repository(source, endpoint)
            if "config.json" not in repository.files:
                raise AxzooError(f"{source.repo} at {source.revision} has no config.json: give another repository")
            return repository.listing(Path(folder) / PARTS).read("config.json")
    except OfflineModeIsEnabled:
        raise AxzooError(
            f"the config.json of {source.repo} at {source.revision} is not in the hub's cache, and HF_HUB_OFFLINE is "
            f"set: unset that, or give the path of a config.json"
        ) from None


def open_repository(source: HubSource, endpoint: str | None) -> Repository:
    """Resolves `source.revision` to a commit and lists its files.

    Raises AxzooError for a file name that points outside the output folder, and for an invalid response.
    """
    api = HfApi(endpoint=endpoint)
    try:
        info = api.model_info(source.repo, revision=source.revision, files_metadata=True, timeout=_TIMEOUT_S)
        if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise ValueError(f"commit {info.sha!r}")
        siblings = info.siblings or []
        files = _top_files(source.repo, siblings)
        nested = tuple(name.removesuffix("/config.json") for name in _names(siblings) if name.endswith("/config.json"))
        headers = build_hf_headers(library_name="axzoo")
        return Repository(source, info.sha, endpoint, files, nested, headers)
    except HFValidationError as error:
        raise AxzooError(f"{source.repo!r} is not a hub repository (ORG/NAME): {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AxzooError(f"{api.endpoint} did not answer like a hub ({error!r}): check HF_ENDPOINT") from None


def _names(siblings: Iterable[RepoSibling]) -> list[str]:
    return sorted(sibling.rfilename for sibling in siblings)


def _top_files(repo: str, siblings: Iterable[RepoSibling]) -> dict[str, RemoteFile]:
    files = {}
    for sibling in siblings:
        path = PurePosixPath(sibling.rfilename)
        if path.is_absolute() or ".." in path.parts or "\\" in sibling.rfilename:
            raise AxzooError(f"{repo} lists the file {sibling.rfilename!r}, which is outside the repository: refused")
        if path.name == sibling.rfilename:
            digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            files[path.name] = RemoteFile.checked(path.name, sibling.size, digest)
    return files


def _log_plan(source: HubSource, commit: str, files: list[RemoteFile], missing: list[RemoteFile]) -> None:
    total, missing_size = (megabytes(sum(file.size for file in group)) for group in (files, missing))
    logger.info(
        f"{source.repo} at commit {commit[:12]}: {len(files)} files, {total}; "
        f"to fetch: {len(missing)} files, {missing_size}"
    )


@contextmanager
def _hub_errors(source: HubSource) -> Iterator[None]:
    """Translates errors of the hub into messages that say what to do."""
    repo = source.repo
    try:
        yield
    except GatedRepoError:
        raise AxzooError(f"{repo} is gated: accept its terms on its hub page and set HF_TOKEN to your token") from None
    except RepositoryNotFoundError:
        raise AxzooError(f"the hub has no repository {repo}: check the name; if it is private, set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise AxzooError(
            f"{repo} has no revision {source.revision!r}: give an existing branch, tag or commit"
        ) from None
    except HfHubHTTPError as error:
        status, path = error.response.status_code, error.response.url.path
        hint = "set HF_TOKEN to a token with read access" if status in (401, 403) else "run again later"
        raise AxzooError(f"the hub answered {status} for {path}: {hint}") from None
    except httpx2.RequestError as error:
        reason = str(error) or type(error).__name__
        raise AxzooError(f"cannot reach the hub for {repo} ({reason}): check the network and HF_ENDPOINT") from None
