"""Verify a bundle against its manifest: the hash of every file, and what the .axmodel files declare."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model")
    parser.add_argument("--checks", action="store_true", help="also run check level 1, which needs the checkpoint")
    parser.add_argument("--lock", type=Path, metavar="DIR", help="folder of the lock files, if not in results/locks")
    parser.add_argument("--source", type=Path, metavar="FILE", help="source.json, if not in results/checkpoints")
    parser.add_argument("--prompt", default="What is the capital of France?", metavar="TEXT", help="prompt for level 1")
    parser.add_argument("--raw", action="store_true", help="do not apply the chat template to the prompt")


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.manifest import read_manifest
    from axzoo.bundle.verification import deviations, mark_damaged, remedy
    from axzoo.core.errors import AxzooError

    count = 0
    for deviation in deviations(args.bundle):
        print(deviation, flush=True)
        count += 1
    if count:
        mark_damaged(args.bundle)
        raise AxzooError(f"{args.bundle} does not match its manifest (deviations: {count}): {remedy(args.bundle)}")
    manifest = read_manifest(args.bundle)
    print(f"{args.bundle}: {len(manifest.files)} files, {manifest.size / 1e6:.1f} MB, all match the manifest")
    if args.checks:
        _check(args)


def _check(args: argparse.Namespace) -> None:
    """Run level 1 in the same way as `axzoo check-layers`."""
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
                thresholds="{}",
                output=Path(folder, "layers.json"),
            )
        )


def _checkpoint(args: argparse.Namespace) -> tuple[Path, Path]:
    """The lock folder and source.json of the bundle's checkpoint, from the options or else from the bundle's project.

    Raises AxzooError when they are missing or belong to another checkpoint.
    """
    from axzoo.bundle.manifest import read_manifest
    from axzoo.core.errors import AxzooError
    from axzoo.fetch.sources import RECEIPT
    from axzoo.parts.lock_index import INDEX, read_index

    manifest = read_manifest(args.bundle)
    results = args.bundle.resolve().parent.parent
    model = manifest.model or "MODEL"  # manifests of format 1 do not contain it
    lock = args.lock or results / "locks" / model
    source = args.source or results / "checkpoints" / model / RECEIPT
    for path, option in ((lock / INDEX, "--lock"), (source, "--source")):
        if not path.is_file():
            raise AxzooError(f"level 1 cannot run: {path} is missing: use {option} to give its location")
    index = read_index(lock)
    same = index.spec == manifest.spec and index.source == manifest.source
    if not same:
        raise AxzooError(f"level 1 cannot run: {lock} belongs to another checkpoint: use --lock to give the right one")
    return lock, source
