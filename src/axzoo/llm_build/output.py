"""Placing a finished bundle where the user wants it."""

from __future__ import annotations

import filecmp
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from axzoo.bundle.manifest import CHECK_NAMES, CHECKS, MANIFEST
from axzoo.check.verdict import worst_cosine
from axzoo.checkpoint.selection import is_weights
from axzoo.core.errors import AxzooError
from axzoo.core.files import atomic_path, read_json, write_text
from axzoo.store import Entry, link

logger = logging.getLogger(__name__)


class Follower:
    """Shows the log at `path`, whole lines at a time, from when a job begins it: what is there already is an earlier
    job's. `wording` is applied to what is shown.
    """

    def __init__(self, path: Path, wording: Callable[[str], str]) -> None:
        self._path = path
        self._wording = wording
        self._earlier = self._state()
        self._shown = 0

    def show_new(self) -> None:
        """Shows the lines that have been written since the last time."""
        if self._state() != self._earlier and self._path.exists():
            self._show(whole_lines=True)

    def show_rest(self) -> None:
        """Shows what has not been shown yet: all of it, where no job had to run."""
        if self._path.exists():
            self._show(whole_lines=False)

    def _show(self, whole_lines: bool) -> None:
        with self._path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        if whole_lines:
            new = new[: new.rfind(b"\n") + 1]
        self._shown += len(new)
        print(self._wording(new.decode(errors="replace")), end="", flush=True)

    def _state(self) -> tuple[int, int, int] | None:
        if not self._path.exists():
            return None
        stat = self._path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


REPORTS = {1: "layers", 2: "generation"}
"""The check's files, by level: <name>.json and <name>.log."""


def tell_worst_layer(report: Any) -> None:
    """Level 1, after its log, which tells of every layer: the worst of all."""
    worst, layer = worst_cosine(report)
    told = f"cos_sim is at least {worst}" if worst is not None else f"cos_sim of layer {layer} is no number"
    logger.info(f"all {len(report['layers'])} layers: {told}")


def in_users_words(text: str, bundle: Path, output: Path) -> str:
    """A check's log, its files called by the names they have in `output`."""
    return text.replace(str(bundle), str(output))


def refuse_output(output: Path) -> None:
    """Raises AxzooError when `output` holds a checkpoint, whose config.json a bundle's would replace, is a file, or
    cannot be written. Leaves nothing there."""
    if output.exists() and not output.is_dir():
        raise AxzooError(f"{output} is a file: --output_path names a folder")
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # not os.access: it knows nothing of a full or read-only disk
            pass
    except OSError as error:
        raise AxzooError(f"--output_path {output} cannot be written: {existing}: {error.strerror}") from None
    weights = [path.name for path in output.glob("*") if is_weights(path.name)]
    if weights:
        raise AxzooError(f"{output} holds a checkpoint ({min(weights)}): give --output_path a folder of its own")


def place_bundle(bundle: Path, output: Path) -> None:
    """Makes `output` hold the files of `bundle`, its manifest last.

    Compiled files are hard links where the disk allows; small ones, which a user may edit, are copies. What an earlier
    manifest in `output` lists and this bundle does not have is removed, and so are the checks of another bundle; all
    other files stay.
    """
    manifest = read_json(bundle / MANIFEST)
    if not _same(bundle / MANIFEST, output / MANIFEST):
        remove_checks(output, CHECK_NAMES)
    for name, record in manifest["files"].items():
        source, target = bundle / name, output / name
        if name not in manifest["parts"]:
            place_copy(source, target)
        elif not _same(source, target):
            link(Entry(source, record["sha256"], record["size"], {}), target)
    for path in _recorded(output):
        if path.relative_to(output).as_posix() not in manifest["files"] and path.is_file():
            logger.warning(f"removed {path}: it belongs to an earlier build")
            path.unlink()
    place_copy(bundle / MANIFEST, output / MANIFEST)


def remove_checks(output: Path, names: Iterable[str]) -> None:
    """Removes results of checks that no longer speak of what lies in `output`."""
    for name in names:
        (output / CHECKS / name).unlink(missing_ok=True)


def place_copy(source: Path, target: Path) -> None:
    """A copy with the same permissions, whole or not at all; one that is the same is left alone."""
    if _same(source, target):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    shutil.copymode(source, target)


def place_text(text: str, target: Path) -> None:
    """A file that holds `text`; one that does is left alone."""
    if not target.is_file() or target.read_text() != text:
        write_text(target, text)


def _same(source: Path, target: Path) -> bool:
    return target.is_file() and (source.samefile(target) or filecmp.cmp(source, target, shallow=False))


def _recorded(output: Path) -> list[Path]:
    """The files inside `output` that its manifest lists; none where it is no manifest of a bundle."""
    try:
        names = list(read_json(output / MANIFEST)["files"])
    except (AxzooError, KeyError, TypeError):
        return []
    paths = [output / name for name in names if isinstance(name, str) and name.isprintable()]
    inside = output.resolve()
    return [path for path in paths if ".." not in path.parts and path.resolve().is_relative_to(inside)]
