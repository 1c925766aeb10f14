"""Placing a finished bundle and its check results in --output_path."""

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


class LogFollower:
    """Prints a log while a job writes it, whole lines at a time, like `tail -f`.

    Printing starts when a job starts a new log; the log that exists before is from an earlier job. `translate` is
    applied to the text before it is printed.
    """

    def __init__(self, path: Path, translate: Callable[[str], str]) -> None:
        self._path = path
        self._translate = translate
        self._earlier = self._state()
        self._shown = 0

    def show_new(self) -> None:
        """Print the lines that were written since the last call."""
        if self._state() != self._earlier and self._path.exists():
            self._show(whole_lines=True)

    def show_rest(self) -> None:
        """Print the rest of the log; if no job had to run, that is the whole log."""
        if self._path.exists():
            self._show(whole_lines=False)

    def _show(self, whole_lines: bool) -> None:
        with self._path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        if whole_lines:
            new = new[: new.rfind(b"\n") + 1]
        self._shown += len(new)
        print(self._translate(new.decode(errors="replace")), end="", flush=True)

    def _state(self) -> tuple[int, int, int] | None:
        if not self._path.exists():
            return None
        stat = self._path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


REPORTS = {1: "layers", 2: "generation"}
"""File names of the checks by level: <name>.json and <name>.log."""


def log_worst_layer(report: Any) -> None:
    """Log the lowest cosine over all layers in a report of level 1."""
    worst = worst_cosine(report)
    if worst is not None:
        cosine, layer = worst
        result = f"cos_sim is at least {cosine}" if cosine is not None else f"cos_sim of layer {layer} is NaN"
        logger.info(f"all {len(report['layers'])} layers: {result}")


def with_output_paths(text: str, bundle: Path, output: Path) -> str:
    """The log of a check, with paths in `bundle` replaced by paths in `output`."""
    return text.replace(str(bundle), str(output))


def check_output_path(output: Path) -> None:
    """Raises AxzooError when `output` is a file, is not writable, or contains a checkpoint.

    The config.json of a bundle would replace that of a checkpoint. Nothing is left in `output`.
    """
    if output.exists() and not output.is_dir():
        raise AxzooError(f"{output} is a file: --output_path must be a folder")
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # os.access does not detect full or read-only disks
            pass
    except OSError as error:
        raise AxzooError(f"--output_path {output} cannot be written: {existing}: {error.strerror}") from None
    weights = [path.name for path in output.glob("*") if is_weights(path.name)]
    if weights:
        raise AxzooError(f"{output} contains a checkpoint ({min(weights)}): give --output_path a separate folder")


def place_bundle(bundle: Path, output: Path) -> None:
    """Place the files of `bundle` in `output`, the manifest last.

    Compiled files are hard links if the file system supports them; the small files, which a user may edit, are copies.
    Files that an earlier manifest in `output` lists and that are not part of this bundle are removed, as are the check
    results of another bundle. All other files are kept.
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
            logger.warning(f"removed {path}, which belongs to an earlier build")
            path.unlink()
    place_copy(bundle / MANIFEST, output / MANIFEST)


def remove_checks(output: Path, names: Iterable[str]) -> None:
    """Remove check results that no longer apply to the files in `output`."""
    for name in names:
        (output / CHECKS / name).unlink(missing_ok=True)


def place_copy(source: Path, target: Path) -> None:
    """Copy a file with its permissions, atomically. An identical target is not touched."""
    if _same(source, target):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    shutil.copymode(source, target)


def place_text(text: str, target: Path) -> None:
    """Write `text` to a file. A file that already contains it is not touched."""
    if not target.is_file() or target.read_text() != text:
        write_text(target, text)


def _same(source: Path, target: Path) -> bool:
    return target.is_file() and (source.samefile(target) or filecmp.cmp(source, target, shallow=False))


def _recorded(output: Path) -> list[Path]:
    """The files inside `output` that its manifest lists; empty if there is no valid manifest."""
    try:
        names = list(read_json(output / MANIFEST)["files"])
    except (AxzooError, KeyError, TypeError):
        return []
    paths = [output / name for name in names if isinstance(name, str) and name.isprintable()]
    inside = output.resolve()
    return [path for path in paths if ".." not in path.parts and path.resolve().is_relative_to(inside)]
