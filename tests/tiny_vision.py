"""A small MiniCPM-V checkpoint: random language model, tower and resampler, with MiniCPM-V's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from axzoo.core.files import write_json
from axzoo.model.reading import spec_of
from axzoo.model.spec import DecoderSpec
from published import minicpm
from published.minicpmv import Resampler, Tower, Vision

VISION = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 70,
}
QUERIES = 16
IMAGE, IMAGE_END, SLICE, SLICE_END = 101, 102, 111, 112
VOCABULARY = 384
PIECES = {"\n": 5, "用户": 110, "AI": 109}
"""Texts that are one token."""


def config(**changes: Any) -> dict[str, Any]:
    """config.json of the model."""
    own = {
        "vision_config": VISION,
        "query_num": QUERIES,
        "vocab_size": VOCABULARY,
        "scale_emb": 12,
        "max_position_embeddings": 512,
    }
    return minicpm.vision_config(**own | changes)


def vision_model(hidden_size: int) -> Vision:
    """The vision model in the published definition, without the last block."""
    torch.manual_seed(1)
    tower = Tower(VISION["hidden_size"], VISION["intermediate_size"], VISION["num_attention_heads"], 3, 14, 5)
    model = Vision(tower, Resampler(QUERIES, hidden_size, max(hidden_size // 128, 1), VISION["hidden_size"]))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float("weight" in name), 0.3)
    return model


def tokenizer(vocab_size: int, ids: Mapping[str, int] = PIECES) -> Tokenizer:
    """Bytes as tokens, and MiniCPM-V's special tokens. The texts `ids` have these ids, so that `<用户>` and `<AI>` are
    three tokens each, as in MiniCPM-V 2.0."""

    def letters(text: str) -> list[str]:
        return list(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0])

    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": IMAGE, "</image>": IMAGE_END}
    special |= {"<slice>": SLICE, "</slice>": SLICE_END}
    vocab = special | {"".join(letters(text)): number for text, number in ids.items()}
    merges = []
    for first, *others in map(letters, ids):
        for letter in others:
            merges.append((first, letter))
            first += letter
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in merges)]
    taken = set(vocab.values())
    free = (number for number in range(SLICE_END + 1, vocab_size) if number not in taken)
    vocab |= {word: next(free) for word in words if word not in vocab}
    others = sorted(set(range(vocab_size)) - set(vocab.values()))
    made = Tokenizer(models.BPE(vocab | {f"<{number}>": number for number in others}, merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    return made


def write_tokenizer(folder: Path, made: Tokenizer) -> None:
    """Write the files of a tokenizer."""
    made.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **tokens})


def make_checkpoint(folder: Path, **changes: Any) -> tuple[Path, Vision]:
    """Write the checkpoint; return its folder and the vision model with exactly its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(**changes)
    torch.manual_seed(0)
    weights = {}
    for name, shape in minicpm.shapes(settings).items():
        scale = 0.3 if len(shape) == 1 or "embed" in name else shape[1] ** -0.5
        weights[f"llm.{name}"] = torch.randn(shape) * scale + (1.0 if len(shape) == 1 else 0.0)
    vision = vision_model(settings["hidden_size"])
    save_file({**weights, **vision.tensors()}, folder / "model.safetensors")
    write_json(folder / "config.json", settings)
    write_tokenizer(folder, tokenizer(settings["vocab_size"]))
    return folder, vision


def spec(**changes: Any) -> DecoderSpec:
    """The spec of `config`."""
    return spec_of(config(**changes), Path("config.json"), ())
