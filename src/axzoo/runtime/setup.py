"""What is to be run and how, from a bundle folder or from main_prefill's flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.runtime.bundle_folder import ModelFiles, open_bundle
from axzoo.runtime.prompting import HTTP, PROMPT_FORMS, TokenizerChoice


@dataclass(frozen=True)
class Flag:
    """A flag that takes a value; bool flags take 0 or 1. `bundle`: whether it may stand beside a bundle folder, which
    names its own files."""

    name: str
    default: str | int | bool
    help: str
    bundle: bool = False


FLAGS = (
    Flag("template_filename_axmodel", "tinyllama-int8/tinyllama_l%d.axmodel", "layer files, %%d is the layer's number"),
    Flag("filename_post_axmodel", "tinyllama-int8/tinyllama_post.axmodel", "the post layer's file"),
    Flag("filename_tokens_embed", "tinyllama.model.embed_tokens.weight.bfloat16.bin", "the embedding's file"),
    Flag("tokenizer_type", 0, "0 LLaMa, 1 Qwen, 2 HTTP, 3 Phi3, 4 MiniCPM; all but 2 are read from files", True),
    Flag("filename_tokenizer_model", "tokenizer.model", "the tokenizer's file or folder; for type 2 a URL", True),
    Flag("axmodel_num", 22, "layers"),
    Flag("tokens_embed_num", 32000, "rows of the embedding"),
    Flag("tokens_embed_size", 2048, "numbers in a row"),
    Flag("bos", True, "begin the prompt with the token for it, if it does not", True),
    Flag("eos", False, "end the prompt with the token for it", True),
    Flag("use_topk", False, "take the first choice of a post layer built with --post_topk, do not sample", True),
    Flag("use_mmap_load_embed", False, "map the embedding's file instead of reading it into memory", True),
    Flag("dynamic_load_axmodel_layer", False, "load each layer when it is run: little memory, slow", True),
    Flag("post_config_path", "post_config.json", "how to sample; if missing, the most probable token is taken", True),
    Flag("live_print", False, "print the answer while it comes", True),
    Flag("continue", False, "go on asking for prompts", True),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; one that is not given is None, so that a bundle's own value shows."""
    group = parser.add_argument_group("flags of main_prefill")
    for flag in FLAGS:
        kind = type(flag.default)
        shown = int(flag.default) if isinstance(flag.default, bool) else flag.default
        group.add_argument(
            f"--{flag.name}",
            type=_switch if kind is bool else kind,
            metavar={bool: "0|1", int: "N", str: "TEXT"}[kind],
            help=f"{flag.help} ({str(shown).replace('%', '%%')})",
        )


def _switch(text: str) -> bool:
    if text not in ("0", "1", "false", "true"):
        raise argparse.ArgumentTypeError(f"must be 0 or 1, not {text!r}")
    return text in ("1", "true")


@dataclass(frozen=True)
class Setup:
    """`chat`: prompts go through the chat template. `talk`: ask for prompts, after the first if there is one."""

    name: str
    files: ModelFiles
    tokenizer: TokenizerChoice
    post_config: Path
    chat: bool
    system: str
    mapped_embedding: bool
    layers_on_demand: bool
    first_choice: bool
    live: bool
    talk: bool


def read_setup(args: argparse.Namespace) -> Setup:
    """Raises AxzooError when the bundle is none, or the flags contradict it or each other."""
    given = {flag.name: value for flag in FLAGS if (value := getattr(args, flag.name)) is not None}
    if args.bundle is not None:
        return _from_bundle(args, given)
    if args.prompt is None:
        raise AxzooError("need option: --prompt TEXT; or name a bundle folder")
    values = {flag.name: flag.default for flag in FLAGS} | given
    files = ModelFiles(
        layers=_layers(values["template_filename_axmodel"], values["axmodel_num"]),
        post=Path(values["filename_post_axmodel"]),
        embedding=Path(values["filename_tokens_embed"]),
        vocab_size=values["tokens_embed_num"],
        hidden_size=values["tokens_embed_size"],
    )
    name = files.post.parent.resolve().name
    tokenizer = _tokenizer(values["tokenizer_type"], values, None)
    return _setup(args, name, files, tokenizer, values, chat=not args.raw, system=args.system or "")


def _from_bundle(args: argparse.Namespace, given: dict[str, Any]) -> Setup:
    for flag in FLAGS:
        if flag.name in given and not flag.bundle:
            raise AxzooError(f"{args.bundle} names its own files: leave out --{flag.name}, or the folder")
    bundle = open_bundle(args.bundle)
    values = {
        "filename_tokenizer_model": str(bundle.tokenizer),
        "bos": bundle.bos,
        "eos": bundle.eos,
        "use_topk": False,
        "use_mmap_load_embed": bundle.mapped_embedding,
        "dynamic_load_axmodel_layer": False,
        "post_config_path": bundle.post_config,
        "live_print": True,
        "continue": False,
    } | given
    tokenizer = _tokenizer(given.get("tokenizer_type"), values, bundle.eos_token_ids)
    chat = bundle.chat and not args.raw
    system = bundle.system_prompt if args.system is None else args.system
    return _setup(args, bundle.folder.resolve().name, bundle, tokenizer, values, chat, system)


def _setup(
    args: argparse.Namespace,
    name: str,
    files: ModelFiles,
    tokenizer: TokenizerChoice,
    values: dict[str, Any],
    chat: bool,
    system: str,
) -> Setup:
    return Setup(
        name=name,
        files=files,
        tokenizer=tokenizer,
        post_config=Path(values["post_config_path"]),
        chat=chat,
        system=system,
        mapped_embedding=values["use_mmap_load_embed"],
        layers_on_demand=values["dynamic_load_axmodel_layer"],
        first_choice=values["use_topk"],
        live=values["live_print"],
        talk=values["continue"] or not args.prompt,
    )


def _tokenizer(kind: int | None, values: dict[str, Any], eos_token_ids: frozenset[int] | None) -> TokenizerChoice:
    source = values["filename_tokenizer_model"]
    is_url = source.startswith(("http://", "https://"))
    if kind is not None and kind != HTTP and kind not in PROMPT_FORMS:
        raise AxzooError(f"--tokenizer_type must be 0 to 4, not {kind}")
    if kind == HTTP and not is_url:
        raise AxzooError(
            "--tokenizer_type 2 asks a server: --filename_tokenizer_model must be its URL, like "
            f"http://127.0.0.1:12345, not {source!r}"
        )
    if kind != HTTP and is_url:
        raise AxzooError(f"--filename_tokenizer_model {source} is a server: say --tokenizer_type 2")
    return TokenizerChoice(kind, source, values["bos"], values["eos"], eos_token_ids)


def _layers(template: str, count: int) -> tuple[Path, ...]:
    if template.count("%d") != 1:
        raise AxzooError(f"--template_filename_axmodel must hold one %d for the layer's number, not {template!r}")
    if count < 1:
        raise AxzooError(f"--axmodel_num must be 1 or more, not {count}")
    return tuple(Path(template.replace("%d", str(i))) for i in range(count))
