"""The token ids a check's prompt becomes."""

from __future__ import annotations

from axzoo.tokenizer.local import LocalTokenizer


def prompt_ids(tokenizer: LocalTokenizer, prompt: str, chat: bool) -> list[int]:
    """The prompt as the user's message of the chat template, or as it stands."""
    return tokenizer.encode_chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)
