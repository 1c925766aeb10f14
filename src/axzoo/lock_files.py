"""What the files of a lock are called, and which of the checkpoint's own small files it lists."""

from __future__ import annotations

INDEX = "index.json"
POST = "post.json"
EMBED = "embed.json"

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""The checkpoint's small files that travel into a bundle's tokenizer folder."""


def layer_lock(index: int) -> str:
    """The file name of a layer's lock."""
    return f"layer_{index}.json"
