"""Completing a bundle: add the files that a board needs besides the compiled parts, and the manifest."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo import __version__
from axzoo.backends import load_backend
from axzoo.bundle.bill_of_materials import bill_of_materials
from axzoo.bundle.boards.board_check import board_check
from axzoo.bundle.boards.host_files import HostedModel, write_host_files
from axzoo.bundle.bundle_receipt import BundleReceipt, built_digest, inputs_digest, write_bundle_receipt
from axzoo.bundle.manifest import MANIFEST, MANIFEST_FORMAT
from axzoo.checkpoint.local_files import require_contained
from axzoo.checkpoint.selection import TOKENIZER_FILES
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import TEMPORARY_SUFFIX, atomic_path, read_json, sha256_of, write_json
from axzoo.core.stamps import Stamp, recorded
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.spec import DecoderSpec
from axzoo.parts.kinds import KINDS, kind_of, part_ids
from axzoo.parts.lock_index import INDEX, LockIndex, read_index
from axzoo.parts.receipt import Receipt, read_receipt
from axzoo.weights.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundlePlan:
    """A bundle to complete. `folder` already contains the parts that `receipts` describe. If given, `receipt` is the
    path of the bundle's own receipt, written last."""

    folder: Path
    name: str
    model: str
    chip: str
    backend: str
    recipe: Recipe
    chat: bool
    lock: Path
    source: Path
    receipts: tuple[Path, ...]
    receipt: Path | None = None  # to write: the receipt of the bundle


def complete_bundle(plan: BundlePlan) -> None:
    """Write tokenizer, configs and run script, and finally the manifest.

    A tokenizer, a chat template and end tokens are optional: a warning says which of them the checkpoint lacks. Raises
    AxzooError when a part is missing or is not what its receipt and its name say, or when the tokenizer belongs to
    another model.
    """
    index, index_sha256 = read_index(plan.lock), sha256_of(plan.lock / INDEX)
    stamps = [Stamp.of(path) for path in plan.receipts if path.exists()]
    read = [read_receipt(path) for path in plan.receipts]
    receipts = _all_parts(plan, index.spec, read)
    built = built_digest(receipts)
    inputs = inputs_digest(
        plan.model, plan.chip, plan.backend, plan.recipe, plan.chat, index_sha256, plan.source, built
    )
    with ThreadPoolExecutor(2) as pool:  # hash the parts while the other files are written
        digested = pool.map(lambda receipt: _record(plan.folder / receipt.file, receipt), receipts)
        others, hosts = _write_other_files(plan, index)
        written = {receipt.file: record for receipt, record in zip(receipts, digested, strict=True)}
    for receipt in receipts:
        _check_role(plan, index.spec, receipt)
    for suffix in {kind.suffix for kind in KINDS}:
        _remove_old_files(plan.folder, set(written), f"*{suffix}")
    _remove_old_files(plan.folder, set(), f".*{TEMPORARY_SUFFIX}")
    _remove_old_receipts(plan.receipts)
    written |= {name: recorded(plan.folder / name) for name in others}
    hosts["hosts"] = {host: verdict.to_dict() for host, verdict in board_check(plan.folder, templates=False).items()}
    files = {name: {"sha256": record["sha256"], "size": record["size"]} for name, record in written.items()}
    manifest = {
        "format": MANIFEST_FORMAT,
        "axzoo": __version__,
        "name": plan.name,
        "model": plan.model,
        "chip": plan.chip,
        "backend": plan.backend,
        "recipe": plan.recipe.to_dict(),
        "source": index.source,
        **({"ignored": index.ignored} if index.ignored else {}),
        "spec": index.spec.to_dict(),
        "files": files,
        "parts": {receipt.file: _describe(receipt, plan.recipe) for receipt in receipts},
        "boards": hosts,
        "sbom": bill_of_materials(read_json(plan.source), checkpoint_folder(plan.source), plan.recipe),
    }
    write_json(plan.folder / MANIFEST, manifest)
    if plan.receipt is not None:
        written[MANIFEST] = recorded(plan.folder / MANIFEST)
        parts = {receipt.file: (stamp, receipt.inputs) for receipt, stamp in zip(read, stamps, strict=True)}
        write_bundle_receipt(plan.receipt, BundleReceipt(inputs, written, built, parts))
    logger.log(SUCCESS, f"completed {plan.folder}: {len(files)} files")


def _all_parts(plan: BundlePlan, spec: DecoderSpec, read: Sequence[Receipt]) -> list[Receipt]:
    """The receipts of all parts of the model, ordered by kind. Raises AxzooError when one is missing or superfluous."""
    receipts = {receipt.part: receipt for receipt in read}
    wanted = part_ids(spec, plan.recipe)
    if set(receipts) != set(wanted) or len(receipts) != len(plan.receipts):
        missing = [part.name for part in wanted if part not in receipts]
        raise AxzooError(
            f"{plan.folder}: the given receipts do not match the model's {len(wanted)} parts"
            + (f": {', '.join(missing[:3])} is missing" if missing else "")
        )
    return [receipts[part] for part in wanted]


def _check_role(plan: BundlePlan, spec: DecoderSpec, receipt: Receipt) -> None:
    """Raises AxzooError when a part has the file name of another part, or its file is not of its kind and shapes."""
    kind, path = kind_of(receipt.part.kind), plan.folder / receipt.file
    expected = kind.file_name(spec.model_type, plan.recipe, receipt.part.index)
    if receipt.file != expected:
        raise AxzooError(f"{path} was compiled as {receipt.part.name}, whose file is {expected}: compile both again")
    if kind.code is None:
        groups = kind.groups(kind.spec(spec, receipt.part.index), plan.recipe)
        about = _describe(receipt, plan.recipe)
        for message in load_backend(plan.backend).contradictions(path, kind, groups, plan.chip, about):
            raise AxzooError(f"{path} cannot be used as {receipt.part.name}: {message}: compile it again")


def _describe(receipt: Receipt, recipe: Recipe) -> dict[str, Any]:
    """A part's entry in the manifest."""
    storage = kind_of(receipt.part.kind).storage(recipe)
    return {**receipt.part.to_dict(), "key": receipt.key, **storage, **receipt.about}


def _write_other_files(plan: BundlePlan, index: LockIndex) -> tuple[list[str], dict[str, Any]]:
    """Write all files except the parts and the manifest; return their names and what the manifest says about hosts."""
    if index.spec.vision is not None and plan.recipe.rounding != "nearest":
        rounding = plan.recipe.rounding
        logger.info(f"rounding {rounding} applies to decoder layers: the vision model is rounded to nearest")
    _copy_tokenizer(plan, index.tokenizer_files)
    model = HostedModel(plan.folder, plan.name, plan.model, plan.chat, plan.recipe, index.spec)
    names, facts = write_host_files(model)
    return [*names, *(f"tokenizer/{name}" for name in index.tokenizer_files)], facts


def _copy_tokenizer(plan: BundlePlan, files: Mapping[str, str]) -> None:
    """Copy the tokenizer files and check them against the lock."""
    source, target = checkpoint_folder(plan.source), plan.folder / "tokenizer"
    _remove_old_files(target, set(files), "*")
    for name, sha256 in files.items():
        if name not in TOKENIZER_FILES:
            raise AxzooError(f"{plan.lock / INDEX} lists {name!r}, which is not a tokenizer file: lock again")
        require_contained(source, [name])
        with atomic_path(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
            if sha256_of(temporary) != sha256:
                raise AxzooError(f"{source / name} changed after it was locked: run the build again, or `axzoo lock`")


def _remove_old_files(folder: Path, expected: set[str], pattern: str) -> None:
    """Remove files of an earlier build. The host program's file template or the tokenizer could pick them up."""
    for path in folder.glob(pattern):
        if path.name not in expected:
            logger.warning(f"removed {path}, which belongs to an earlier build")
            path.unlink()


def _remove_old_receipts(receipts: Sequence[Path]) -> None:
    """Remove the receipts of parts that the bundle no longer has. `axzoo store gc` would keep their store entries."""
    for folder in {path.parent for path in receipts}:
        for path in set(folder.glob("*.json")) - set(receipts):
            logger.info(f"removed {path}, which belongs to an earlier build")
            path.unlink()


def _record(path: Path, receipt: Receipt) -> dict[str, Any]:
    """The sha256 and stamp of a part's file. Raises AxzooError when the sha256 differs from the receipt."""
    record = recorded(path)
    if receipt.sha256 != record["sha256"]:
        raise AxzooError(f"{path} changed after it was built: remove it and run again")
    return record
