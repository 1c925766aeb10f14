"""The flags of ax-llm's main_prefill: their names, defaults and meanings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


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
