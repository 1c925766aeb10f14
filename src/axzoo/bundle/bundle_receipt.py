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
from axzoo.core.stamps import digest_of
from axzoo.fetch.sources import content_facts
from axzoo.parts.receipt import Receipt
from axzoo.weights.recipe import Recipe

FORMAT = 1


@dataclass(frozen=True)
class BundleReceipt:
    """`inputs` is the digest of everything that the job read (`inputs_digest`). `files` has the sha256 and stamp of
    every file of the bundle, by name, including the manifest."""

    inputs: str
    files: Mapping[str, Mapping[str, Any]]


def bundle_code() -> str:
    """The fingerprint of the code that determines the files of a bundle other than the compiled ones."""
    return fingerprint("axzoo.bundle.completion")


def inputs_digest(
    model: str, chip: str, backend: str, recipe: Recipe, chat: bool, index: str, source: Path, parts: Iterable[Receipt]
) -> str:
    """The digest of a bundle job's inputs: its arguments, the sha256 of the lock's index.json, the checkpoint that the
    fetch receipt `source` describes, the receipts of all parts, and the code.

    Raises AxzooError when `source` is missing or damaged.
    """
    try:
        checkpoint = content_facts(read_json(source))
    except (KeyError, TypeError, AttributeError):
        raise AxzooError(f"{source} is damaged: remove it and fetch the checkpoint again") from None
    # Stamps of weights used in place are left out: the parts say which weights they have.
    small = {name: sha256 for name, sha256 in checkpoint["files"].items() if isinstance(sha256, str)}
    built = {part.file: [part.key, part.sha256] for part in parts}
    arguments = [model, chip, backend, recipe.to_dict(), chat]
    return digest_of([arguments, index, checkpoint["source"], small, built, bundle_code()])


def write_bundle_receipt(path: Path, receipt: BundleReceipt) -> None:
    write_json(path, {"format": FORMAT, "inputs": receipt.inputs, "files": receipt.files})


def read_bundle_receipt(path: Path) -> BundleReceipt | None:
    """The receipt at `path`; None if it is missing, damaged or of another format: the bundle is then built again."""
    try:
        data = read_json(path)
        if data["format"] != FORMAT:
            return None
        return BundleReceipt(str(data["inputs"]), {str(name): dict(record) for name, record in data["files"].items()})
    except (AxzooError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
