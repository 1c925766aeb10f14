"""Completing a bundle: everything a board needs beside the compiled files, and the manifest of it all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axzoo import __version__
from axzoo.bundle.bill_of_materials import bill_of_materials
from axzoo.bundle.manifest import MANIFEST
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import TEMPORARY_SUFFIX, atomic_path, read_json, sha256_of, write_json, write_text
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.spec import DecoderSpec
from axzoo.parts.lock import INDEX, TOKENIZER_FILES
from axzoo.runtime.sampling import PostConfig
from axzoo.tokenizer.local import load_tokenizer
from axzoo.weights.formats import embedding_storage, layer_storage, post_storage
from axzoo.weights.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundlePlan:
    """One bundle to complete: `folder` already holds the compiled files that `receipts` tell of."""

    folder: Path
    name: str
    chip: str
    recipe: Recipe
    chat: bool
    lock: Path
    source: Path
    receipts: tuple[Path, ...]


def complete_bundle(plan: BundlePlan) -> None:
    """Adds tokenizer, configs and run script, and last the manifest.

    Raises AxzooError when a compiled file is not what its receipt says, or the tokenizer does not serve `plan.chat`.
    """
    index = read_json(plan.lock / INDEX)
    spec = DecoderSpec.from_dict(index["spec"])
    parts = {part["file"]: part for part in map(read_json, plan.receipts)}
    layers, post, embed = _sorted_out(parts)
    with ThreadPoolExecutor(2) as pool:
        records = pool.map(lambda name: _record(plan.folder / name, parts[name]), parts)  # while the rest is written
        others = _write_others(plan, index, spec, (layers[0], post, embed))
        files = dict(zip(parts, records, strict=True))
    _remove_strangers(plan.folder, set(parts), "*.axmodel")
    _remove_strangers(plan.folder, set(), f".*{TEMPORARY_SUFFIX}")
    files |= {name: _record(plan.folder / name) for name in others}
    manifest = {
        "axzoo": __version__,
        "name": plan.name,
        "chip": plan.chip,
        "recipe": asdict(plan.recipe),
        "source": index["source"],
        "spec": index["spec"],
        "files": files,
        "parts": {
            name: {"key": part["key"], **_storage(name, post, embed, plan.recipe), **part["about"]}
            for name, part in parts.items()
        },
        "sbom": bill_of_materials(read_json(plan.source), checkpoint_folder(plan.source), plan.recipe),
    }
    write_json(plan.folder / MANIFEST, manifest)
    logger.log(SUCCESS, f"completed {plan.folder}: {len(manifest['files'])} files")


def _write_others(
    plan: BundlePlan, index: Mapping[str, Any], spec: DecoderSpec, compiled: tuple[str, str, str]
) -> list[str]:
    """Writes everything but the compiled files, of which `compiled` names first layer, post layer and embedding, and
    the manifest; returns the names."""
    tokenizer = _copy_tokenizer(plan, index["tokenizer_files"])
    config = _runtime_config(plan, spec, *compiled, tokenizer.eos_token_ids)
    write_json(plan.folder / "config.json", config)
    write_json(plan.folder / "post_config.json", asdict(PostConfig()))
    write_text(plan.folder / "run.sh", _run_script(config))
    (plan.folder / "run.sh").chmod(0o755)
    return ["config.json", "post_config.json", "run.sh", *(f"tokenizer/{name}" for name in index["tokenizer_files"])]


def _sorted_out(parts: Mapping[str, Any]) -> tuple[list[str], str, str]:
    """The compiled files by what they are: layers in order, post layer, embedding."""
    (post,) = (name for name in parts if name.endswith("_post.axmodel"))
    (embed,) = (name for name in parts if name.endswith(".bin"))
    return [name for name in parts if name not in (post, embed)], post, embed


def _storage(name: str, post: str, embed: str, recipe: Recipe) -> dict[str, Any]:
    """How the weights of the compiled file `name` were stored."""
    if name == embed:
        return embedding_storage()
    return post_storage(recipe) if name == post else layer_storage(recipe)


def _copy_tokenizer(plan: BundlePlan, files: Mapping[str, str]) -> Any:
    """Copies the tokenizer's files, checks them against the lock and loads the result."""
    source, target = checkpoint_folder(plan.source), plan.folder / "tokenizer"
    _remove_strangers(target, set(files), "*")
    for name, sha256 in files.items():
        if name not in TOKENIZER_FILES:
            raise AxzooError(f"{plan.lock / INDEX} lists {name!r}, which is no tokenizer file: lock again")
        with atomic_path(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
            if sha256_of(temporary) != sha256:
                raise AxzooError(f"{source / name} changed after it was locked: lock the checkpoint again")
    tokenizer = load_tokenizer(target)
    if plan.chat:
        tokenizer.encode_chat([{"role": "user", "content": "?"}])
    return tokenizer


def _runtime_config(
    plan: BundlePlan, spec: DecoderSpec, first_layer: str, post: str, embed: str, eos_token_ids: tuple[int, ...]
) -> dict[str, Any]:
    """The runtime's config: ax-llm's keys, and what axzoo's own host program needs besides."""
    if not eos_token_ids:
        raise AxzooError(f"{plan.source.parent}: neither generation_config.json nor the tokenizer names an end token")
    return {
        "model_name": plan.name,
        "tokenizer_type": 2,
        "url_tokenizer_model": "http://127.0.0.1:12345",
        "template_filename_axmodel": first_layer.replace("_l0", "_l%d"),
        "axmodel_num": spec.num_hidden_layers,
        "filename_post_axmodel": post,
        "filename_tokens_embed": embed,
        "tokens_embed_num": spec.vocab_size,
        "tokens_embed_size": spec.layer.hidden_size,
        "system_prompt": "",
        "post_config_path": "post_config.json",
        "bos": 0,
        "eos": 0,
        "use_mmap_load_embed": 1,
        "eos_token_ids": list(eos_token_ids),
        "chat": plan.chat,
    }


def _run_script(config: Mapping[str, Any]) -> str:
    """Starts the board's host program on the bundle."""
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
        "live_print": 1,
        "continue": 1,
    }
    lines = [f'  --{name} "{value}" \\\n' for name, value in flags.items()]
    return (
        "#!/bin/sh\n"
        "# Talks to the model: ./run.sh PROMPT, with a tokenizer server at hand. It starts ax-llm's main_prefill,\n"
        "# or what MAIN_PREFILL says: on any computer 'axzoo run'.\n"
        'cd "$(dirname "$0")" || exit 1\n'
        "exec ${MAIN_PREFILL:-main_prefill} \\\n" + "".join(lines) + '  --prompt="${1-}"\n'
    )


def _remove_strangers(folder: Path, expected: set[str], pattern: str) -> None:
    """Removes files of an earlier build, which a host program's file template or the tokenizer might pick up."""
    for path in folder.glob(pattern):
        if path.name not in expected:
            logger.warning(f"removed {path}: it belongs to an earlier build")
            path.unlink()


def _record(path: Path, receipt: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """sha256 and size of a file, which are the receipt's where there is one."""
    sha256 = sha256_of(path)
    if receipt is not None and receipt["sha256"] != sha256:
        raise AxzooError(f"{path} changed after it was built: remove it and run again")
    return {"sha256": sha256, "size": path.stat().st_size}
