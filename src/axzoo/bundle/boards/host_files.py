"""The files that configure the boards' hosts: config.json, post_config.json, tokenizer.txt and run.sh."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axzoo.bundle.boards.axllm import axllm_config
from axzoo.bundle.boards.checkpoint_sampling import checkpoint_sampling
from axzoo.bundle.boards.lengths import host_warnings
from axzoo.bundle.boards.templates import TemplateChoice, choose_template, no_template
from axzoo.core.files import write_json, write_text
from axzoo.model.spec import DecoderSpec
from axzoo.parts.kinds import KINDS
from axzoo.runtime.prompting import PICTURE_TOKENS
from axzoo.runtime.shortcomings import NO_END, NO_TEMPLATE, NO_TOKENIZER
from axzoo.tokenizer.end_tokens import configured_end_ids
from axzoo.tokenizer.host_choice import write_tokenizer_txt
from axzoo.tokenizer.local import LocalTokenizer, find_tokenizer, require_rows
from axzoo.tokenizer.tokenizer_txt import FILE_NAME as TOKENIZER_TXT
from axzoo.weights.recipe import Recipe

logger = logging.getLogger(__name__)

TOKENIZER_SERVER = "http://127.0.0.1:12345"
"""Where run.sh expects the tokenizer server."""


@dataclass(frozen=True)
class HostedModel:
    """A bundle whose host files are written. `folder` already contains the tokenizer folder.

    `name` is the bundle's name, `model` that of the model. With `chat`, prompts go through the chat template.
    """

    folder: Path
    name: str
    model: str
    chat: bool
    recipe: Recipe
    spec: DecoderSpec


def write_host_files(model: HostedModel) -> tuple[list[str], dict[str, Any]]:
    """Write the files. Return their names, and the manifest's entry `boards`: warnings about the recipe, the chat
    template that axllm uses, and how well tokenizer.txt does.

    Raises AxzooError when the tokenizer belongs to another model, or its chat template fails.
    """
    tokenizer = find_tokenizer(model.folder / "tokenizer")
    talk = _conversation(model, tokenizer)
    config = _config(model, talk)
    tokenizer_txt = write_tokenizer_txt(
        model.folder / TOKENIZER_TXT,
        tokenizer,
        model.spec.vocab_size,
        end_ids=talk.eos_token_ids,
        chat=talk.chat,
        writes_bos=talk.template.writes_bos,
    )
    write_json(model.folder / "config.json", config)
    write_json(model.folder / "post_config.json", asdict(checkpoint_sampling(model.folder / "tokenizer")))
    write_text(model.folder / "run.sh", _run_script(config, model.recipe.post_topk > 0))
    (model.folder / "run.sh").chmod(0o755)
    warnings = host_warnings(model.recipe, model.spec.embedding_scale)
    facts = {
        "warnings": warnings,
        "axllm": {"template": talk.template.to_dict()},
        "tokenizer_txt": tokenizer_txt,
    }
    for note in host_notes(facts):
        logger.warning(f"{model.model}: {note}")
    return ["config.json", "post_config.json", "run.sh", TOKENIZER_TXT], facts


def host_notes(facts: Any) -> list[str]:
    """What the entry `boards` of a manifest says about hosts that cannot use the bundle; empty if the manifest does not
    have it, as those of older versions."""
    facts = facts if isinstance(facts, dict) else {}
    reason = facts.get("axllm", {}).get("template", {}).get("reason")
    return [*facts.get("warnings", []), *([f"no chat template of axllm suits: {reason}"] if reason else [])]


@dataclass(frozen=True)
class _Conversation:
    """How to talk to the model: the end tokens, whether to use the tokenizer's chat template, and axllm's instead."""

    eos_token_ids: list[int]
    pad_token_id: int | None
    chat: bool
    template: TemplateChoice
    picture_tokens: list[int] | None


def _conversation(model: HostedModel, tokenizer: LocalTokenizer | None) -> _Conversation:
    """What the tokenizer says about conversations. Warnings say what it lacks."""
    folder, rows = model.folder / "tokenizer", model.spec.vocab_size
    ends = configured_end_ids(folder) if tokenizer is None else tokenizer.eos_token_ids
    if tokenizer is None:
        logger.warning(f"{model.model} has no tokenizer: {NO_TOKENIZER}")
    else:
        require_rows(tokenizer, rows)
        if model.chat and tokenizer.chat is None and model.spec.vision is None:
            logger.warning(f"{model.model} has no chat template: {NO_TEMPLATE}")
        elif model.chat:
            tokenizer.encode_chat([{"role": "user", "content": "?"}])
    known = [index for index in ends if index < rows]
    if not known:
        logger.warning(f"{model.model} has no end token: {NO_END}")
    pad = None if tokenizer is None else tokenizer.special_token_id("pad_token")
    return _Conversation(
        eos_token_ids=known,
        pad_token_id=None if pad in known or pad is None or pad >= rows else pad,
        chat=model.chat and tokenizer is not None and tokenizer.chat is not None,
        template=_host_template(model, tokenizer),
        picture_tokens=_picture_tokens(model, tokenizer),
    )


def _picture_tokens(model: HostedModel, tokenizer: LocalTokenizer | None) -> list[int] | None:
    """The ids of the tokens that stand for pictures; None if the model does not see or the tokenizer lacks them."""
    if model.spec.vision is None or tokenizer is None:
        return None
    found = [tokenizer.backend.token_to_id(token) for token in PICTURE_TOKENS]
    known = [index for index in found if index is not None]
    if len(known) < len(found):
        logger.warning(f"{model.model} cannot be asked about pictures: its tokenizer lacks {', '.join(PICTURE_TOKENS)}")
        return None
    return known


def _host_template(model: HostedModel, tokenizer: LocalTokenizer | None) -> TemplateChoice:
    """axllm's built-in chat template for the model."""
    if tokenizer is None:
        return no_template("the checkpoint has no tokenizer")
    if not model.chat:
        return no_template("the model continues text (chat: false), and axllm always applies a chat template")
    if tokenizer.chat is None:
        return no_template("the checkpoint has no chat template, and axllm always applies one")
    renderer = tokenizer.renderer
    if renderer is None:
        return no_template("the checkpoint encodes conversations by token ids, not by a chat template")
    return choose_template(
        lambda messages, variables: renderer.render(messages, True, variables),
        model.spec.model_type,
        dated=tokenizer.template_uses("strftime_now"),
    )


def _config(model: HostedModel, talk: _Conversation) -> dict[str, Any]:
    """config.json: the keys of axllm, and those of axzoo's runtime, which axllm ignores."""
    built = [kind for kind in KINDS if kind.is_built(model.recipe) and kind.ids(model.spec)]
    parts = {key: value for kind in built for key, value in kind.config(model.spec, model.recipe).items()}
    return {
        **axllm_config(model.name, parts, talk.template, talk.pad_token_id),
        **_embedding_scale(model.spec, model.recipe),
        "eos_token_ids": talk.eos_token_ids,
        "chat": talk.chat,
        **({} if talk.picture_tokens is None else {"picture_tokens": talk.picture_tokens}),
    }


def _embedding_scale(spec: DecoderSpec, recipe: Recipe) -> dict[str, Any]:
    """The factor by which the host program multiplies embedding rows, if it does."""
    scaled = recipe.embedding_scale == "host" and spec.embedding_scale != 1
    return {"embedding_scale": spec.embedding_scale} if scaled else {}


def _run_script(config: Mapping[str, Any], use_topk: bool) -> str:
    """run.sh, which starts the board's host program with this bundle. With `use_topk`, the post layer gives tokens."""
    flags = {
        "template_filename_axmodel": config["template_filename_axmodel"],
        "axmodel_num": config["axmodel_num"],
        "tokenizer_type": 2,
        "filename_tokenizer_model": TOKENIZER_SERVER,
        "bos": int(config["bos"]),
        "eos": int(config["eos"]),
        "filename_post_axmodel": config["filename_post_axmodel"],
        "filename_tokens_embed": config["filename_tokens_embed"],
        "tokens_embed_num": config["tokens_embed_num"],
        "tokens_embed_size": config["tokens_embed_size"],
        "use_mmap_load_embed": int(config["use_mmap_load_embed"]),
        "post_config_path": config["post_config_path"],
        **_vision_flags(config),
        **({"use_topk": 1} if use_topk else {}),
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
