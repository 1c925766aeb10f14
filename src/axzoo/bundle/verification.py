"""Verifying a bundle against its manifest: the hashes of all files, and what the .axmodel files declare.

Only headers are read into memory; neither torch nor ONNX Runtime is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from axzoo.backends import Backend, load_backend
from axzoo.bundle.manifest import CHECK_NAMES, CHECKS, MANIFEST, FileRecord, Manifest, read_manifest
from axzoo.core.errors import AxzooError
from axzoo.core.files import sha256_of
from axzoo.parts.kind import PartId, PartKind
from axzoo.parts.kinds import KINDS
from axzoo.runtime.bundle_folder import Bundle, open_bundle

_BF16_BYTES = 2
_UNLISTED = frozenset({MANIFEST, *(f"{CHECKS}/{name}" for name in CHECK_NAMES)})
"""Expected files that the manifest does not list: the manifest itself, and the check results of llm_build."""


def deviations(folder: Path) -> Iterator[str]:
    """Describe each deviation from the manifest in one line that names the file.

    What the files declare is examined only if all hashes match. Raises AxzooError when the manifest is missing, damaged
    or of a newer format.
    """
    manifest = read_manifest(folder)
    found = _files(folder)
    wrong = [f"{name} is missing" for name in sorted(manifest.files.keys() - found)]
    unlisted = sorted(found - manifest.files.keys() - _UNLISTED)
    wrong += [f"{name} is not listed in the manifest: remove it" for name in unlisted]
    yield from wrong
    for name in sorted(manifest.files.keys() & found):
        for change in _changes(folder / name, manifest.files[name]):
            wrong.append(name)
            yield f"{name} {change}"
    if not wrong:
        yield from _contradictions(folder, manifest)


def require_intact(folder: Path) -> None:
    """Raises AxzooError when the bundle deviates from its manifest."""
    wrong = list(deviations(folder))
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise AxzooError(f"{folder} does not match its manifest: {'; '.join(wrong[:3])}{more}: {remedy(folder)}")


def remedy(folder: Path) -> str:
    """What to do with a bundle that deviates from its manifest. In the project that built it, Snakemake restores it."""
    real = folder.resolve()
    chip, name, results = real.parent.name, real.name, real.parent.parent
    if not (results / "receipts" / chip / f"{name}.json").is_file():
        return "build it again with the command that built it, or copy it again"
    target = Path(results.name, chip, name, MANIFEST)
    return f"run `snakemake --cores all {target}` in {results.parent}, with the --configfile it was built with, if any"


def mark_damaged(folder: Path) -> None:
    """Date files whose content is not in the manifest, so that the next build reads them even if they were damaged
    without a change of their times."""
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        with suppress(OSError):
            if any(_changes(folder / name, record)):
                os.utime(folder / name)


def require_engine(folder: Path) -> None:
    """Raises AxzooError when a bundle's files do not run in axzoo's engine. A folder without a manifest passes."""
    if not (folder / MANIFEST).is_file():
        return
    backend = read_manifest(folder).backend
    if not load_backend(backend).runs_here:
        raise AxzooError(
            f"{folder} was compiled by backend {backend}, whose files run only on a board: copy the folder there "
            f"and start its run.sh"
        )


def _files(folder: Path) -> set[str]:
    """Names of everything in the folder except subfolders. A symbolic link to a folder counts as a file."""
    found = set()
    for root, folders, files in os.walk(folder):
        names = [*files, *(name for name in folders if Path(root, name).is_symlink())]
        found |= {Path(root, name).relative_to(folder).as_posix() for name in names}
    return found


def _changes(path: Path, record: FileRecord) -> Iterator[str]:
    if path.is_symlink() or not path.is_file():
        yield "is not a regular file"
    elif path.stat().st_size != record.size:
        yield f"has {path.stat().st_size} bytes, but the manifest says {record.size}"
    elif sha256_of(path) != record.sha256:
        yield "has a different sha256 from the manifest"


def _contradictions(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Contradictions between the manifest's spec and recipe, config.json and what the parts declare."""
    backend = load_backend(manifest.backend)
    try:
        bundle = open_bundle(folder)
        yield from _of_config(bundle, manifest)
        for kind in KINDS:
            ids = kind.ids(manifest.spec)
            for part, path in zip(ids, kind.paths(bundle), strict=False):  # _of_config reports different numbers
                yield from _of_part(kind, part, path, manifest, backend)
    except AxzooError as error:
        yield str(error)
    except IndexError:
        yield f"{MANIFEST} has too few sliding_windows or rotary_layers for its layers"


def _of_config(bundle: Bundle, manifest: Manifest) -> Iterator[str]:
    spec = manifest.spec
    facts = {
        "num_hidden_layers": (len(bundle.layers), spec.num_hidden_layers),
        "vocab_size": (bundle.vocab_size, spec.vocab_size),
        "hidden_size": (bundle.hidden_size, spec.layer.hidden_size),
    }
    for name, (actual, expected) in facts.items():
        if actual != expected:
            yield f"{name} is {actual} in config.json, but {expected} in the manifest"
    size, expected = bundle.embedding.stat().st_size, spec.vocab_size * spec.layer.hidden_size * _BF16_BYTES
    if size != expected:
        yield f"{bundle.embedding.name} has {size} bytes, but the manifest's spec implies {expected}"


def _of_part(kind: PartKind, part: PartId, path: Path, manifest: Manifest, backend: Backend) -> Iterator[str]:
    """Contradictions of one part. `path` is the file that config.json names for it."""
    if manifest.part_ids:
        listed = manifest.part_ids.get(path.name)
        if listed != part:
            found = "does not list it as a part" if listed is None else f"lists it as {listed.name}"
            yield f"config.json uses {path.name} as {part.name}, but the manifest {found}"
    if kind.code is None:
        groups = kind.groups(kind.spec(manifest.spec, part.index), manifest.recipe)
        yield from backend.contradictions(path, kind, groups, manifest.chip, manifest.parts.get(path.name, {}))
