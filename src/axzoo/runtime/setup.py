"""Collects the settings of `axzoo run` from a bundle folder or from the flags of main_prefill, and those of tokenizer
servers from a bundle or another folder."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file
from axzoo.runtime.bundle_folder import Config, ModelFiles, VisionFiles, open_bundle
from axzoo.runtime.prompting import HTTP, PROMPT_FORMATS, TokenizerChoice, with_format

if TYPE_CHECKING:
    from axzoo.tokenizer.local import LocalTokenizer


@dataclass(frozen=True)
class Flag:
    """A flag of main_prefill that takes a value; bool flags take 0 or 1.

    `with_bundle` says whether the flag can be combined with a bundle folder, which defines its own files.
    """

    name: str
    default: str | int | bool
    help: str
    with_bundle: bool = False


FLAGS = (
    Flag("template_filename_axmodel", "tinyllama-int8/tinyllama_l%d.axmodel", "layer files; %%d is the layer number"),
    Flag("filename_post_axmodel", "tinyllama-int8/tinyllama_post.axmodel", "post layer file"),
    Flag("filename_tokens_embed", "tinyllama.model.embed_tokens.weight.bfloat16.bin", "embedding file"),
    Flag("tokenizer_type", 0, "0 LLaMa, 1 Qwen, 2 HTTP server, 3 Phi3, 4 MiniCPM; all but 2 read local files", True),
    Flag("filename_tokenizer_model", "tokenizer.model", "tokenizer file or folder; a URL for type 2", True),
    Flag("axmodel_num", 22, "number of layers"),
    Flag("tokens_embed_num", 32000, "number of rows in the embedding"),
    Flag("tokens_embed_size", 2048, "values per row of the embedding"),
    Flag("bos", True, "start the prompt with the bos token, unless it already does", True),
    Flag("eos", False, "end the prompt with the eos token", True),
    Flag("use_topk", False, "use the top token of a post layer built with --post_topk; no sampling", True),
    Flag("use_mmap_load_embed", False, "memory-map the embedding file instead of reading it into memory", True),
    Flag("dynamic_load_axmodel_layer", False, "load each layer only while it runs: less memory in fast mode", True),
    Flag("filename_vpm_resampler_axmodel", "", "vision model; with vpm_two_stage its resampler"),
    Flag("filename_vpm_encoder_axmodel", "", "with vpm_two_stage: the vision model's tower"),
    Flag("vpm_width", 280, "width of the vision model's images"),
    Flag("vpm_height", 280, "height of the vision model's images"),
    Flag("vpm_two_stage", False, "the vision model is two files"),
    Flag("post_config_path", "post_config.json", "sampling settings; greedy if the file is missing", True),
    Flag("live_print", False, "print the answer while it is generated", True),
    Flag("continue", False, "ask for more prompts after the first answer", True),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of main_prefill, the ones of its vision branch also as misspelled there (axmodedl).

    A flag that is not given is None, so that a bundle's setting applies.
    """
    group = parser.add_argument_group("flags of main_prefill")
    for flag in FLAGS:
        kind = type(flag.default)
        shown = int(flag.default) if isinstance(flag.default, bool) else flag.default
        misspelled = [f"--{flag.name}".replace("_axmodel", "_axmodedl")] if "vpm" in flag.name else []
        group.add_argument(
            *dict.fromkeys([f"--{flag.name}", *misspelled]),
            type=_boolean if kind is bool else kind,
            metavar={bool: "0|1", int: "N", str: "TEXT"}[kind],
            help=f"{flag.help} ({str(shown).replace('%', '%%')})",
        )


def _boolean(text: str) -> bool:
    if text not in ("0", "1", "false", "true"):
        raise argparse.ArgumentTypeError(f"must be 0 or 1, not {text!r}")
    return text in ("1", "true")


@dataclass(frozen=True)
class Setup:
    """The settings of a run.

    With `chat`, prompts go through the chat template. With `interactive`, prompts are read from stdin, after the
    prompt on the command line if there is one.
    """

    name: str
    files: ModelFiles
    tokenizer: TokenizerChoice
    post_config: Path
    chat: bool
    system: str
    mmap_embedding: bool
    layers_on_demand: bool
    use_topk: bool
    live_print: bool
    interactive: bool


def read_setup(args: argparse.Namespace) -> Setup:
    """Read the settings. Raises AxzooError when the bundle is invalid, or flags conflict with it or each other."""
    given = {flag.name: value for flag in FLAGS if (value := getattr(args, flag.name)) is not None}
    if args.bundle is not None:
        return _from_bundle(args, given)
    if args.prompt is None:
        raise AxzooError("need option: --prompt TEXT, or pass a bundle folder")
    values = {flag.name: flag.default for flag in FLAGS} | given
    files = ModelFiles(
        layers=_layers(values["template_filename_axmodel"], values["axmodel_num"]),
        post=Path(values["filename_post_axmodel"]),
        embedding=Path(values["filename_tokens_embed"]),
        vocab_size=values["tokens_embed_num"],
        hidden_size=values["tokens_embed_size"],
        vision=_vision(values),
        embedding_scale=_embedding_scale(values),
    )
    name = files.post.parent.resolve().name
    tokenizer = _tokenizer(values["tokenizer_type"], values, None)
    return _setup(args, name, files, tokenizer, values, chat=not args.raw, system=args.system or "")


def _from_bundle(args: argparse.Namespace, given: dict[str, Any]) -> Setup:
    for flag in FLAGS:
        if flag.name in given and not flag.with_bundle:
            raise AxzooError(f"{args.bundle} defines its own files: omit --{flag.name}, or the bundle folder")
    bundle = open_bundle(args.bundle)
    values = {
        "filename_tokenizer_model": str(bundle.tokenizer),
        "bos": bundle.bos,
        "eos": bundle.eos,
        "use_topk": False,
        "use_mmap_load_embed": bundle.mmap_embedding,
        "dynamic_load_axmodel_layer": False,
        "post_config_path": bundle.post_config,
        "live_print": True,
        "continue": False,
    } | given
    chat = bundle.uses_chat("filename_tokenizer_model" in given) and not args.raw
    tokenizer = _tokenizer(given.get("tokenizer_type", bundle.tokenizer_type), values, bundle.eos_token_ids)
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
        mmap_embedding=values["use_mmap_load_embed"],
        layers_on_demand=values["dynamic_load_axmodel_layer"],
        use_topk=values["use_topk"],
        live_print=values["live_print"],
        interactive=values["continue"] or not args.prompt,
    )


def _tokenizer(kind: int | None, values: dict[str, Any], eos_token_ids: frozenset[int] | None) -> TokenizerChoice:
    source = values["filename_tokenizer_model"]
    is_url = source.startswith(("http://", "https://"))
    if kind is not None and kind != HTTP and kind not in PROMPT_FORMATS:
        raise AxzooError(f"--tokenizer_type must be 0 to 4, not {kind}")
    if kind == HTTP and not is_url:
        raise AxzooError(
            "--tokenizer_type 2 uses a tokenizer server: --filename_tokenizer_model must be its URL, like "
            f"http://127.0.0.1:12345, not {source!r}"
        )
    if kind != HTTP and is_url:
        raise AxzooError(f"--filename_tokenizer_model {source} is a URL: add --tokenizer_type 2")
    return TokenizerChoice(kind, source, values["bos"], values["eos"], eos_token_ids)


def _vision(values: dict[str, Any]) -> VisionFiles | None:
    names = {"resampler": values["filename_vpm_resampler_axmodel"], "encoder": values["filename_vpm_encoder_axmodel"]}
    if not names["resampler"]:
        return None
    if not values["vpm_two_stage"]:
        names = {"vision": names["resampler"]}
    elif not names["encoder"]:
        raise AxzooError("--vpm_two_stage 1 needs the tower's file: add --filename_vpm_encoder_axmodel FILE")
    files = {kind: Path(name) for kind, name in names.items()}
    config = _bundle_config(values)
    tokens = None if config is None else config.picture_tokens()
    return VisionFiles(files, values["vpm_height"], values["vpm_width"], tokens=tokens)


def _bundle_config(values: dict[str, Any]) -> Config | None:
    """The bundle's config.json, which says what no flag of main_prefill does. It is beside the embedding."""
    path = Path(values["filename_tokens_embed"]).parent / "config.json"
    return Config(path) if has_file(path) else None


def _embedding_scale(values: dict[str, Any]) -> float:
    config = _bundle_config(values)
    return 1.0 if config is None else config.get("embedding_scale", float, 1.0)


def _layers(template: str, count: int) -> tuple[Path, ...]:
    if template.count("%d") != 1:
        raise AxzooError(f"--template_filename_axmodel must contain one %d for the layer number, not {template!r}")
    if count < 1:
        raise AxzooError(f"--axmodel_num must be 1 or more, not {count}")
    return tuple(Path(template.replace("%d", str(i))) for i in range(count))


@dataclass(frozen=True)
class ServedTokenizer:
    """A tokenizer and its settings. With `chat`, prompts go through the chat template; `system_prompt` may be empty.

    `image_rows` is the number of tokens that stand for a picture, 0 for a model that does not see.
    """

    tokenizer: LocalTokenizer
    chat: bool
    system_prompt: str
    image_rows: int = 0


def load_served_tokenizer(folder: Path) -> ServedTokenizer:
    """Load the tokenizer of a bundle, a checkpoint or another folder.

    A bundle's config.json sets `chat`; other folders use the chat template if there is one. Raises AxzooError when
    there is no tokenizer, or a file is not valid.
    """
    from axzoo.tokenizer.local import load_tokenizer

    if not folder.is_dir():
        raise AxzooError(f"{folder} is not a folder: pass a bundle, or a folder with a tokenizer.json")
    if not (folder / "tokenizer").is_dir():
        tokenizer = load_tokenizer(folder)
        return ServedTokenizer(tokenizer, tokenizer.chat is not None, "")
    tokenizer = load_tokenizer(folder / "tokenizer")
    path = folder / "config.json"
    if not has_file(path):
        return ServedTokenizer(tokenizer, tokenizer.chat is not None, "")
    config = Config(path)
    kind = config.prompt_format()
    chat = config.get("chat", bool, tokenizer.chat is not None) or kind is not None
    rows = config.get("vpm_queries", int, 0) if config.picture_tokens() else 0
    return ServedTokenizer(with_format(tokenizer, kind, bos=True), chat, config.get("system_prompt", str, ""), rows)
