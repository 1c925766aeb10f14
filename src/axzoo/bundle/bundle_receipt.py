"""The receipt of a bundle: what `axzoo bundle` read and wrote, so that a plan notices lost, edited and outdated files.

It is next to the folder of the bundle's part receipts, in results/receipts/<chip>/<bundle>.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, write_json
from axzoo.core.fingerprint import fingerprint
from axzoo.core.stamps import Stamp, digest_of
from axzoo.fetch.sources import content_facts
from axzoo.parts.receipt import Receipt
from axzoo.weights.recipe import Recipe

FORMAT = 1


@dataclass(frozen=True)
class BundleReceipt:
    """`inputs` is the digest of everything that the job read (`inputs_digest`). `files` has the sha256 and stamp of
    every file of the bundle, by name, including the manifest.

    `built` is the digest of all part receipts. `parts` has the stamp of each and the `inputs` in it, by the name of the
    part's file, so that plans do not need to read them.
    """

    inputs: str
    files: Mapping[str, Mapping[str, Any]]
    built: str
    parts: Mapping[str, tuple[Stamp, str]]


def bundle_code() -> str:
    """The fingerprint of the code that determines the files of a bundle other than the compiled ones."""
    return fingerprint("axzoo.bundle.completion")


def built_digest(parts: Iterable[Receipt]) -> str:
    """The digest of what the receipts of all parts say."""
    return digest_of({part.file: [part.key, part.sha256, part.inputs] for part in parts})


def inputs_digest(
    model: str, chip: str, backend: str, recipe: Recipe, chat: bool, index: str, source: Path, built: str
) -> str:
    """The digest of a bundle job's inputs: its arguments, the sha256 of the lock's index.json, the checkpoint that the
    fetch receipt `source` describes, the `built_digest`, and the code.

    Raises AxzooError when `source` is missing or damaged.
    """
    try:
        checkpoint = content_facts(read_json(source))
    except (KeyError, TypeError, AttributeError):
        raise AxzooError(f"{source} is damaged: remove it and fetch the checkpoint again") from None
    # Stamps of weights used in place are left out: the parts say which weights they have.
    small = {name: sha256 for name, sha256 in checkpoint["files"].items() if isinstance(sha256, str)}
    arguments = [model, chip, backend, recipe.to_dict(), chat]
    return digest_of([arguments, index, checkpoint["source"], small, built, bundle_code()])


def write_bundle_receipt(path: Path, receipt: BundleReceipt) -> None:
    parts = {name: [list(stamp), inputs] for name, (stamp, inputs) in receipt.parts.items()}
    known = {"inputs": receipt.inputs, "files": receipt.files, "built": receipt.built, "parts": parts}
    write_json(path, {"format": FORMAT, **known})


def read_bundle_receipt(path: Path) -> BundleReceipt | None:
    """The receipt at `path`; None if it is missing, damaged or of another format: the bundle is then built again."""
    try:
        data = read_json(path)
        if data["format"] != FORMAT:
            return None
        files = {str(name): dict(record) for name, record in data["files"].items()}
        parts = {str(name): (Stamp(*stamp), str(inputs)) for name, (stamp, inputs) in data["parts"].items()}
        return BundleReceipt(str(data["inputs"]), files, str(data["built"]), parts)
    except (AxzooError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
