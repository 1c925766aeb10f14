"""Completing a bundle: add the files that a board needs besides the compiled parts, and the manifest."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axzoo import __version__
from axzoo.backends import load_backend
from axzoo.bundle.bill_of_materials import bill_of_materials
from axzoo.bundle.bundle_receipt import BundleReceipt, built_digest, inputs_digest, write_bundle_receipt
from axzoo.bundle.manifest import MANIFEST, MANIFEST_FORMAT
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import TEMPORARY_SUFFIX, atomic_path, read_json, sha256_of, write_json, write_text
from axzoo.core.stamps import Stamp, recorded
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.spec import DecoderSpec
from axzoo.parts.kinds import KINDS, kind_of, part_ids
from axzoo.parts.lock_index import INDEX, TOKENIZER_FILES, LockIndex, read_index
from axzoo.parts.receipt import Receipt, read_receipt
from axzoo.runtime.post_config import PostConfig
from axzoo.runtime.prompting import PICTURE_TOKENS
from axzoo.runtime.shortcomings import NO_END, NO_TEMPLATE, NO_TOKENIZER
from axzoo.tokenizer.end_tokens import configured_end_ids
from axzoo.tokenizer.local import find_tokenizer, require_rows
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
        others = _write_other_files(plan, index)
        written = {receipt.file: record for receipt, record in zip(receipts, digested, strict=True)}
    for receipt in receipts:
        _check_role(plan, index.spec, receipt)
    for suffix in {kind.suffix for kind in KINDS}:
        _remove_old_files(plan.folder, set(written), f"*{suffix}")
    _remove_old_files(plan.folder, set(), f".*{TEMPORARY_SUFFIX}")
    _remove_old_receipts(plan.receipts)
    written |= {name: recorded(plan.folder / name) for name in others}
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


def _write_other_files(plan: BundlePlan, index: LockIndex) -> list[str]:
    """Write all files except the parts and the manifest; return their names."""
    _copy_tokenizer(plan, index.tokenizer_files)
    config = _runtime_config(plan, index.spec, _conversation(plan, index.spec))
    write_json(plan.folder / "config.json", config)
    write_json(plan.folder / "post_config.json", asdict(PostConfig()))
    write_text(plan.folder / "run.sh", _run_script(config))
    (plan.folder / "run.sh").chmod(0o755)
    return ["config.json", "post_config.json", "run.sh", *(f"tokenizer/{name}" for name in index.tokenizer_files)]


def _copy_tokenizer(plan: BundlePlan, files: Mapping[str, str]) -> None:
    """Copy the tokenizer files and check them against the lock."""
    source, target = checkpoint_folder(plan.source), plan.folder / "tokenizer"
    _remove_old_files(target, set(files), "*")
    for name, sha256 in files.items():
        if name not in TOKENIZER_FILES:
            raise AxzooError(f"{plan.lock / INDEX} lists {name!r}, which is not a tokenizer file: lock again")
        with atomic_path(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
            if sha256_of(temporary) != sha256:
                raise AxzooError(f"{source / name} changed after it was locked: run the build again, or `axzoo lock`")


def _conversation(plan: BundlePlan, spec: DecoderSpec) -> dict[str, Any]:
    """The keys of config.json that depend on the tokenizer: the end tokens, whether to use its chat template, and the
    tokens that stand for pictures.

    Raises AxzooError when the tokenizer belongs to another model, or its chat template fails.
    """
    folder, vocab_size = plan.folder / "tokenizer", spec.vocab_size
    tokenizer = find_tokenizer(folder)
    ends = configured_end_ids(folder) if tokenizer is None else tokenizer.eos_token_ids
    if tokenizer is None:
        logger.warning(f"{plan.model} has no tokenizer: {NO_TOKENIZER}")
    else:
        require_rows(tokenizer, vocab_size)
        if plan.chat and tokenizer.chat is None and spec.vision is None:
            logger.warning(f"{plan.model} has no chat template: {NO_TEMPLATE}")
        elif plan.chat:
            tokenizer.encode_chat([{"role": "user", "content": "?"}])
    known = [index for index in ends if index < vocab_size]
    if not known:
        logger.warning(f"{plan.model} has no end token: {NO_END}")
    chat = plan.chat and tokenizer is not None and tokenizer.chat is not None
    keys: dict[str, Any] = {"eos_token_ids": known, "chat": chat}
    if spec.vision is None or tokenizer is None:
        return keys
    tokens = [tokenizer.backend.token_to_id(token) for token in PICTURE_TOKENS]
    if None in tokens:
        logger.warning(f"{plan.model} cannot be asked about pictures: its tokenizer lacks {', '.join(PICTURE_TOKENS)}")
        return keys
    return {**keys, "picture_tokens": tokens}


def _runtime_config(plan: BundlePlan, spec: DecoderSpec, conversation: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: the keys of ax-llm and of axzoo's runtime."""
    built = [kind for kind in KINDS if kind.is_built(plan.recipe) and kind.ids(spec)]
    parts = {key: value for kind in built for key, value in kind.config(spec, plan.recipe).items()}
    return {
        "model_name": plan.name,
        "tokenizer_type": 2,
        "url_tokenizer_model": "http://127.0.0.1:12345",
        **parts,
        "system_prompt": "",
        "post_config_path": "post_config.json",
        "bos": 0,
        "eos": 0,
        "use_mmap_load_embed": 1,
        **_embedding_scale(spec, plan.recipe),
        **conversation,
    }


def _embedding_scale(spec: DecoderSpec, recipe: Recipe) -> dict[str, Any]:
    """The factor by which the host program multiplies embedding rows, if it does."""
    scaled = recipe.embedding_scale == "host" and spec.embedding_scale != 1
    return {"embedding_scale": spec.embedding_scale} if scaled else {}


def _run_script(config: Mapping[str, Any]) -> str:
    """run.sh, which starts the board's host program with this bundle."""
    flags = {
        "template_filename_axmodel": config["template_filename_axmodel"],
        "axmodel_num": config["axmodel_num"],
        "tokenizer_type": config["tokenizer_type"],
        "filename_tokenizer_model": config["url_tokenizer_model"],
        "bos": config["bos"],
        "eos": config["eos"],
        "filename_post_axmodel": config["filename_post_axmodel"],
        "filename_tokens_embed": config["filename_tokens_embed"],
        "tokens_embed_num": config["tokens_embed_num"],
        "tokens_embed_size": config["tokens_embed_size"],
        "use_mmap_load_embed": config["use_mmap_load_embed"],
        "post_config_path": config["post_config_path"],
        **_vision_flags(config),
        "live_print": 1,
        "continue": 1,
    }
    sees = "filename_vpm_resampler_axmodel" in config
    picture = ' ${2+--image="$2"}' if sees else ""
    lines = [f'  --{name} "{value}" \\\n' for name, value in flags.items()]
    return (
        "#!/bin/sh\n"
        f"# Usage: ./run.sh PROMPT{' PICTURE' if sees else ''}, while a tokenizer server is running. It starts\n"
        "# ax-llm's main_prefill, or the program in MAIN_PREFILL, such as 'axzoo run', which runs on any computer.\n"
        'cd "$(dirname "$0")" || exit 1\n'
        "exec ${MAIN_PREFILL:-main_prefill} \\\n" + "".join(lines) + f'  --prompt="${{1-}}"{picture}\n'
    )


def _vision_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a vision model, as ax-llm's branch minicpm-v spells them."""
    names = {
        "filename_vpm_encoder_axmodel": "filename_vpm_encoder_axmodedl",
        "filename_vpm_resampler_axmodel": "filename_vpm_resampler_axmodedl",
        **{name: name for name in ("vpm_width", "vpm_height", "vpm_two_stage")},
    }
    return {flag: config[name] for name, flag in names.items() if name in config}


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
