"""What a tokenizer server serves: the tokenizer of a bundle, or of any folder that holds one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from axzoo.errors import AxzooError
from axzoo.files import read_json
from axzoo.tokenizer.local import LocalTokenizer, load_tokenizer


@dataclass(frozen=True)
class Served:
    """A tokenizer, whether prompts go through its chat template, and the system's message ("" for none)."""

    tokenizer: LocalTokenizer
    chat: bool
    system_prompt: str


def open_served(folder: Path) -> Served:
    """Reads the folder. A bundle's config.json says whether to chat; elsewhere the chat template's presence does.

    Raises AxzooError when there is no tokenizer, or a file is broken.
    """
    if not folder.is_dir():
        raise AxzooError(f"{folder} is not a folder: name a bundle, or a folder with a tokenizer.json")
    if not (folder / "tokenizer").is_dir():
        tokenizer = load_tokenizer(folder)
        return Served(tokenizer, tokenizer.chat is not None, "")
    tokenizer = load_tokenizer(folder / "tokenizer")
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    chat, system_prompt = config.get("chat", tokenizer.chat is not None), config.get("system_prompt", "")
    if type(chat) is not bool or type(system_prompt) is not str:
        raise AxzooError(f"{path}: chat must be true or false, and system_prompt a text")
    return Served(tokenizer, chat, system_prompt)
