"""What M5Stack's StackFlow looks for: the mode file of a model, and the control data of its Debian package."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

from axzoo import __version__
from axzoo.bundle.boards.debian import DebianPackage
from axzoo.bundle.manifest import Manifest
from axzoo.core.files import canonical_json

_HTTP = 2
"""StackFlow's tokenizer_type for a tokenizer server; the unit starts it from `ext_scripts`."""

_PLAIN = re.compile(r"[^A-Za-z0-9.+-]+")
_CHIPS = {"AX620E": "ax630c"}
"""Chips whose boards have another name."""

_HOMEPAGE = "https://huggingface.co/"


def model_name(manifest: Manifest) -> str:
    """The bundle's name and its chip, with only the characters that package names and units may have."""
    chip = _CHIPS.get(manifest.chip, manifest.chip.lower())
    return _PLAIN.sub("-", f"{manifest.name}-{chip}").strip("-.+")


def debian_package(manifest: Manifest) -> DebianPackage:
    """The package's control data. DEBFULLNAME and DEBEMAIL name the maintainer, as for Debian's own tools."""
    name = model_name(manifest)
    files = {file: record.sha256 for file, record in manifest.files.items()}
    revision = hashlib.sha256(canonical_json(files).encode()).hexdigest()[:8]  # another build is another version
    control = {
        "Package": f"llm-model-{name.lower()}",
        "Version": f"{__version__}+{revision}-m5stack1",
        "Architecture": "arm64",
        "Maintainer": f"{os.environ.get('DEBFULLNAME', 'axzoo')} <{os.environ.get('DEBEMAIL', 'axzoo@localhost')}>",
        "Section": "llm-module",
        "Priority": "optional",
        "Depends": "lib-llm (>= 1.6)",
        "Conflicts": f"llm-{name.lower()}",
        **({"Homepage": page} if (page := homepage(manifest)) else {}),
        "Description": _description(manifest),
    }
    return DebianPackage(control, {})


def homepage(manifest: Manifest) -> str:
    """The checkpoint's page on the hub; empty if it comes from elsewhere."""
    repository = manifest.source.get("hub", "")
    return f"{_HOMEPAGE}{repository}" if isinstance(repository, str) and repository else ""


def _description(manifest: Manifest) -> str:
    runs = (
        ""
        if manifest.backend != "host"
        else (
            " The compiled files are standard ONNX for tests on a desk. They do not run on an\n"
            " NPU: build them with the vendor's compiler for a board.\n"
        )
    )
    return (
        f"language model {model_name(manifest)} for {manifest.chip}\n"
        f" Compiled layers, embedding and tokenizer for the llm unit of StackFlow,\n"
        f" with the script that serves the tokenizer.\n{runs}"
    ).rstrip("\n")


def mode_file(
    manifest: Manifest, config: Mapping[str, Any], post_config: Mapping[str, Any], script: str, size: int
) -> dict[str, Any]:
    """The mode_NAME.json of a bundle with this config.json and post_config.json. `size` are the bytes on the device."""
    longest = max(manifest.recipe.last_kv_cache_len, default=0)
    kept = ("filename_tokens_embed", "filename_post_axmodel", "template_filename_axmodel")
    counts = ("axmodel_num", "tokens_embed_num", "tokens_embed_size")
    return {
        "mode": model_name(manifest),
        "type": "llm",
        "homepage": homepage(manifest),
        "compile_flage": f"-w {manifest.recipe.weight_type}",
        "pulsar_version": "",
        "capabilities": ["text_generation", "chat"],
        "input_type": ["llm.utf-8", "llm.utf-8.stream", "llm.chat_completion", "llm.chat_completion.stream"],
        "output_type": ["llm.utf-8", "llm.utf-8.stream"],
        "mode_param": {
            "system_prompt": config.get("system_prompt", ""),
            "tokenizer_type": _HTTP,
            "url_tokenizer_model": "http://localhost:8080",
            **{key: config[key] for key in (*kept, *counts)},
            "b_bos": False,
            "b_eos": False,
            "b_use_mmap_load_embed": True,
            "b_dynamic_load_axmodel_layer": False,
            "max_token_len": manifest.recipe.kv_cache_len,
            **post_config,
            "precompute_len": longest,  # a positive length chooses the host that keeps conversations in memory
            "cmm_size": -(-size // 1024),
            "ext_scripts": [script],
        },
    }
