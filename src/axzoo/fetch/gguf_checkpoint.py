"""A llama GGUF file, written as the Hugging Face checkpoint it was made from: the values it holds, as fp32."""

from __future__ import annotations

import logging
from pathlib import Path

from axzoo.checkpoint.gguf import GgufCheckpoint
from axzoo.errors import AxzooError
from axzoo.fetch.disk import megabytes, need_space
from axzoo.fetch.gguf_config import model_config, token_ids
from axzoo.fetch.gguf_tokenizer import build_tokenizer, special_tokens_map, tokenizer_config
from axzoo.fetch.safetensors_writer import tensor_bytes, write_safetensors
from axzoo.files import write_json, write_text

logger = logging.getLogger(__name__)

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What `convert` writes."""


def convert(path: Path, output: Path) -> None:
    """Converts the GGUF file at `path` into the existing folder `output`; equal files give equal bytes.

    Raises AxzooError when the file is damaged, or holds an architecture or tokenizer axzoo does not convert.
    """
    gguf = GgufCheckpoint(path)
    config, tokenizer = model_config(gguf), build_tokenizer(gguf)
    if tokenizer.get_vocab_size() > config["vocab_size"]:
        raise AxzooError(f"{path} has more tokens than its embedding's {config['vocab_size']} rows: fetch it again")
    small = {
        "config.json": config,
        "generation_config.json": token_ids(gguf),
        "special_tokens_map.json": special_tokens_map(gguf),
        "tokenizer_config.json": tokenizer_config(gguf, config["max_position_embeddings"]),
    }
    size = sum(tensor_bytes(gguf, name) for name in gguf.tensors)
    need_space(output, size)
    logger.info(f"converting {len(gguf.tensors)} tensors to {megabytes(size)} of fp32")
    write_safetensors(output / "model.safetensors", gguf)
    write_text(output / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    for name, value in small.items():
        write_json(output / name, value)
