"""Verify a bundle: the hash of every file, what the .axmodel files declare, and the weights of files for the NPU."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="CHECKPOINT",
        help="compare the weights in files of the vendor's compiler with this checkpoint's; BUNDLE can be any folder "
        "with such files, or one of them",
    )
    parser.add_argument("--checks", action="store_true", help="also run check level 1, which needs the checkpoint")
    parser.add_argument("--lock", type=Path, metavar="DIR", help="folder of the lock files, if not in results/locks")
    parser.add_argument("--source", type=Path, metavar="FILE", help="source.json, if not in results/checkpoints")
    parser.add_argument("--prompt", default="What is the capital of France?", metavar="TEXT", help="prompt for level 1")
    parser.add_argument("--raw", action="store_true", help="do not apply the chat template to the prompt")


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.manifest import MANIFEST, read_manifest
    from axzoo.bundle.verification import deviations, mark_damaged, remedy
    from axzoo.core.errors import AxzooError

    if args.weights and not (args.bundle / MANIFEST).is_file():
        _prove_weights(args.bundle, args.weights)
        return
    count = 0
    for deviation in deviations(args.bundle):
        print(deviation, flush=True)
        count += 1
    if count:
        mark_damaged(args.bundle)
        raise AxzooError(f"{args.bundle} does not match its manifest (deviations: {count}): {remedy(args.bundle)}")
    manifest = read_manifest(args.bundle)
    print(f"{args.bundle}: {len(manifest.files)} files, {manifest.size / 1e6:.1f} MB, all match the manifest")
    if args.weights:
        _prove_weights(args.bundle, args.weights)
    if args.checks:
        _check(args)


def _prove_weights(place: Path, checkpoint: Path) -> None:
    """Print what each file holds. Raises AxzooError unless all of them hold the checkpoint's weights."""
    from axzoo.backends.pulsar2.vendor_folder import FolderWeights, missing_files, parts_in, prove_parts
    from axzoo.backends.pulsar2.weight_proof import WeightProof
    from axzoo.core.errors import AxzooError

    parts, model = parts_in(place), FolderWeights(checkpoint)
    layers = {part.path.name: part.layer for part in parts}
    told: dict[str, tuple[str, ...]] = {}

    def tell(proof: WeightProof) -> None:
        told[proof.file] = proof.faults
        lines = [*proof.faults, *(f"cannot be proven: {text}" for text in proof.unknown)]
        layer = layers[proof.file]
        result = f"holds the weights of {'the post layer' if layer is None else f'layer {layer}'} ({proof.form})"
        for line in [*(lines or [result]), *(f"note: {note}" for note in proof.notes)]:
            print(f"{proof.file}: {line}", flush=True)

    proofs = prove_parts(parts, model, tell)
    wrong = [proof for proof in proofs if not proof.proven]
    for proof in wrong:
        for fault in proof.faults[len(told[proof.file]) :]:
            print(f"{proof.file}: {fault}", flush=True)
    missing = missing_files(parts, model.num_layers) if place.is_dir() else []
    for text in missing:
        print(text, flush=True)
    if wrong or missing:
        raise AxzooError(
            f"{place} does not hold the weights of {checkpoint} (files that differ or cannot be proven: {len(wrong)}, "
            f"missing: {len(missing)}): compile these files again, or name the checkpoint that they were compiled from"
        )
    print(f"{place}: all weights in {len(parts)} files are those of {checkpoint}")


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
