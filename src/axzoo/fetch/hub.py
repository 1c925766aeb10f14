"""Fetches a repository of the Hugging Face hub at one commit, file by file."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

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

from axzoo.checkpoint.selection import checkpoint_files, refuse_foreign_files
from axzoo.core.errors import AxzooError
from axzoo.core.files import megabytes, require_space
from axzoo.fetch.sources import PARTS, HubSource, hashed_file, write_receipt
from axzoo.fetch.transfer import RemoteFile, partial_path, transfer

logger = logging.getLogger(__name__)


_TIMEOUT_S = 30.0


def fetch_hub(source: HubSource, output: Path, endpoint: str | None = None) -> None:
    """Fetches the checkpoint of `source` into the folder `output`. Files that are already there and correct are kept.

    `endpoint` is the hub's address; None means HF_ENDPOINT, or else the public hub. The revision is resolved to a
    commit first, and all files are fetched at that commit. HF_TOKEN is used, and never sent to another host.

    Raises AxzooError when the hub refuses access, lists an unsafe file name, or the transfer fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    with _hub_errors(source):
        commit, listed = list_files(source, endpoint)
        names = checkpoint_files(listed, f"{source.repo} at {source.revision}")
        refuse_foreign_files(output, names)
        missing = [listed[name] for name in names if not listed[name].matches(output / name)]
        _log_plan(source, commit, [listed[name] for name in names], missing)
        _transfer_all(missing, source, commit, endpoint, output)
    write_receipt(output, source, {name: hashed_file(output / name) for name in names}, commit=commit)
    shutil.rmtree(output / PARTS)


def list_files(source: HubSource, endpoint: str | None) -> tuple[str, dict[str, RemoteFile]]:
    """The commit of `source.revision` and the files in the top folder of the repository at that commit.

    Raises AxzooError for a file name that points outside the output folder, and for an invalid response.
    """
    api = HfApi(endpoint=endpoint)
    try:
        info = api.model_info(source.repo, revision=source.revision, files_metadata=True, timeout=_TIMEOUT_S)
        if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise ValueError(f"commit {info.sha!r}")
        return info.sha, _top_files(source.repo, info.siblings or [])
    except HFValidationError as error:
        raise AxzooError(f"{source.repo!r} is not a hub repository (ORG/NAME): {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AxzooError(f"{api.endpoint} did not answer like a hub ({error!r}): check HF_ENDPOINT") from None


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


def _transfer_all(
    missing: list[RemoteFile], source: HubSource, commit: str, endpoint: str | None, output: Path
) -> None:
    parts = output / PARTS
    parts.mkdir(exist_ok=True)
    received = [path.stat().st_size for path in (partial_path(file, parts) for file in missing) if path.exists()]
    require_space(output, sum(file.size for file in missing) - sum(received))
    headers = build_hf_headers(library_name="axzoo")
    for file in missing:
        url = hf_hub_url(source.repo, file.name, revision=commit, endpoint=endpoint)
        transfer(file, url, headers, output / file.name, parts)


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
    except OfflineModeIsEnabled:
        raise AxzooError(f"{repo} cannot be fetched while HF_HUB_OFFLINE is set: unset it") from None
    except httpx2.RequestError as error:
        reason = str(error) or type(error).__name__
        raise AxzooError(f"cannot reach the hub for {repo} ({reason}): check the network and HF_ENDPOINT") from None
