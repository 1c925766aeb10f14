"""Whether a bundle is what its manifest says: its files by their bytes, its .axmodel files by what they declare.

Reads nothing into memory but headers, and needs neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from axzoo.backends import load_backend
from axzoo.bundle.manifest import CHECK_NAMES, CHECKS, MANIFEST, FileRecord, Manifest, read_manifest
from axzoo.core.errors import AxzooError
from axzoo.core.files import sha256_of
from axzoo.parts.kind import PartId, PartKind
from axzoo.parts.kinds import KINDS
from axzoo.runtime.bundle_folder import Bundle, open_bundle

_BF16_BYTES = 2
_NO_PART = frozenset({MANIFEST, *(f"{CHECKS}/{name}" for name in CHECK_NAMES)})
"""Files that the manifest does not list and that belong to a bundle: its own, and the checks that llm_build leaves."""


def deviations(folder: Path) -> Iterator[str]:
    """What is not as the manifest says, each in words that name the file. What the files declare is looked into when
    all their bytes are right.

    Raises AxzooError when there is no manifest, or it is not one that axzoo wrote.
    """
    manifest = read_manifest(folder)
    found = _files(folder)
    wrong = [f"{name} is missing" for name in sorted(manifest.files.keys() - found)]
    strangers = sorted(found - manifest.files.keys() - _NO_PART)
    wrong += [f"{name} is superfluous: the manifest does not list it" for name in strangers]
    yield from wrong
    for name in sorted(manifest.files.keys() & found):
        for word in _changes(folder / name, manifest.files[name]):
            wrong.append(name)
            yield f"{name} {word}"
    if not wrong:
        yield from _contradictions(folder, manifest)


def refuse_deviations(folder: Path) -> None:
    """Raises AxzooError when the bundle is not what its manifest says."""
    wrong = list(deviations(folder))
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise AxzooError(f"{folder} is not what its manifest says: {'; '.join(wrong[:3])}{more}: build it again")


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
    """Everything inside but ordinary folders: a link to a folder counts as a file."""
    found = set()
    for root, folders, files in os.walk(folder):
        names = [*files, *(name for name in folders if Path(root, name).is_symlink())]
        found |= {Path(root, name).relative_to(folder).as_posix() for name in names}
    return found


def _changes(path: Path, record: FileRecord) -> Iterator[str]:
    if path.is_symlink() or not path.is_file():
        yield "is no ordinary file"
    elif path.stat().st_size != record.size:
        yield f"has {path.stat().st_size} bytes, the manifest says {record.size}"
    elif sha256_of(path) != record.sha256:
        yield "has other bytes than the manifest says"


def _contradictions(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Contradictions between the manifest's spec and recipe, config.json and what the parts declare."""
    try:
        bundle = open_bundle(folder)
        yield from _of_config(bundle, manifest)
        for kind in KINDS:
            ids = kind.ids(manifest.spec.num_hidden_layers)
            for part, path in zip(ids, kind.paths(bundle), strict=False):  # their numbers were compared above
                yield from _of_part(kind, part, path, manifest)
    except AxzooError as error:
        yield str(error)
    except IndexError:
        yield f"{MANIFEST} has too few sliding_windows or rotary_layers for its layers"


def _of_config(bundle: Bundle, manifest: Manifest) -> Iterator[str]:
    spec = manifest.spec
    facts = {
        "layers": (len(bundle.layers), spec.num_hidden_layers),
        "tokens": (bundle.vocab_size, spec.vocab_size),
        "hidden_size": (bundle.hidden_size, spec.layer.hidden_size),
    }
    for what, (said, expected) in facts.items():
        if said != expected:
            yield f"config.json says {said} {what}, the manifest {expected}"
    size, expected = bundle.embedding.stat().st_size, spec.vocab_size * spec.layer.hidden_size * _BF16_BYTES
    if size != expected:
        yield f"{bundle.embedding.name} has {size} bytes, the manifest's spec asks for {expected}"


def _of_part(kind: PartKind, part: PartId, path: Path, manifest: Manifest) -> Iterator[str]:
    """`path` is the file that config.json gives the part."""
    stated = manifest.part_ids.get(path.name, part)
    if stated != part:
        yield f"config.json uses {path.name} as {part.name}, the manifest says it is {stated.name}"
    if kind.code is None:
        groups = kind.groups(kind.spec(manifest.spec, part.index), manifest.recipe)
        backend = load_backend(manifest.backend)
        yield from backend.contradictions(path, kind, groups, manifest.chip, manifest.parts.get(path.name, {}))
