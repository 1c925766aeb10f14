"""Check a bundle against its manifest: every file's bytes, and what the .axmodel files declare."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the built model's folder")
    parser.add_argument("--checks", action="store_true", help="run check level 1 too; needs the checkpoint")
    parser.add_argument("--lock", type=Path, metavar="DIR", help="the model's lock files, where not results/locks")
    parser.add_argument("--source", type=Path, metavar="FILE", help="source.json, where not in results/checkpoints")
    parser.add_argument(
        "--prompt", default="What is the capital of France?", metavar="TEXT", help="what level 1 says to the model"
    )
    parser.add_argument("--raw", action="store_true", help="take the prompt as it stands, without the chat template")


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.manifest import read_manifest
    from axzoo.bundle.verification import deviations
    from axzoo.core.errors import AxzooError

    count = 0
    for words in deviations(args.bundle):
        print(words, flush=True)
        count += 1
    if count:
        raise AxzooError(f"{args.bundle} is not what its manifest says ({count} deviations): build it again")
    manifest = read_manifest(args.bundle)
    print(f"{args.bundle}: {len(manifest.files)} files, {manifest.size / 1e6:.1f} MB, all as its manifest says")
    if args.checks:
        _check(args)


def _check(args: argparse.Namespace) -> None:
    """Level 1, as `axzoo check-layers` does it."""
    import tempfile

    from axzoo.commands import check_layers

    lock, source = _checkpoint(args)
    with tempfile.TemporaryDirectory() as folder:
        check_layers.run(
            argparse.Namespace(
                bundle=args.bundle,
                lock=lock,
                source=source,
                prompt=args.prompt,
                raw=args.raw,
                output=Path(folder, "layers.json"),
            )
        )


def _checkpoint(args: argparse.Namespace) -> tuple[Path, Path]:
    """The lock and the receipt of the bundle's checkpoint: those given, else those of the project it lies in.

    Raises AxzooError when there are none, or they are another checkpoint's.
    """
    from axzoo.bundle.manifest import read_manifest
    from axzoo.core.errors import AxzooError
    from axzoo.fetch.sources import RECEIPT
    from axzoo.parts.lock_index import INDEX, read_index

    manifest = read_manifest(args.bundle)
    results = args.bundle.resolve().parent.parent
    model = manifest.model or "MODEL"  # manifests of format 1 do not name it
    lock = args.lock or results / "locks" / model
    source = args.source or results / "checkpoints" / model / RECEIPT
    for path, option in ((lock / INDEX, "--lock"), (source, "--source")):
        if not path.is_file():
            raise AxzooError(f"level 1 cannot be run: there is no {path}: name the right one with {option}")
    index = read_index(lock)
    same = index.spec == manifest.spec and index.source == manifest.source
    if not same:
        raise AxzooError(f"level 1 cannot be run: {lock} is of another checkpoint: name the right one with --lock")
    return lock, source
