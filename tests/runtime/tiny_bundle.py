"""A small random Llama: the transformers model, which serves as an independent oracle, and bundles compiled from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from axzoo.backends.host.compiler import compile_layer, compile_post
from axzoo.model.config_view import ConfigView
from axzoo.model.families import load_family
from axzoo.model.spec import TensorRef
from axzoo.weights.bf16 import write_embedding
from axzoo.weights.recipe import Recipe

SPECIAL_TOKENS = ["<bos>", "<eos>", "<user>", "<system>", "<assistant>"]
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
LAYERS = 3
CHUNK = 4
CONTEXT = 15

EXACT = Recipe(
    weight_type="fp32",
    post_weight_type="fp32",
    hidden_state_type="fp32",
    prefill_len=CHUNK,
    kv_cache_len=CONTEXT,
    last_kv_cache_len=(CHUNK, 2 * CHUNK),
)
"""Nothing is rounded, so differences are bugs. Three prefill groups cover prompts of up to 12 tokens."""


@dataclass(frozen=True)
class Oracle:
    """The transformers model that the bundles are compiled from."""

    model: LlamaForCausalLM

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Return the logits [V] after the last token."""
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0, -1].numpy()

    def hidden(self, ids: list[int]) -> list[NDArray[np.float32]]:
        """Return the output [n, H] of each layer but the last, which transformers returns only after the final norm."""
        with torch.inference_mode():
            states = self.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        return [state[0].numpy() for state in states[1:-1]]


def make_oracle(max_position_embeddings: int = 64) -> Oracle:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    embedding = model.model.embed_tokens.weight
    embedding.data = embedding.to(torch.bfloat16).float()  # the bundle's embedding is bf16
    return Oracle(model)


def write_bundle(oracle: Oracle, recipe: Recipe, folder: Path) -> None:
    family = load_family("llama")
    config = ConfigView(
        {k: v for k, v in oracle.model.config.to_dict().items() if v is not None}, folder / "config.json"
    )
    spec = family.decoder_spec(config)
    tensors = {name: tensor.numpy() for name, tensor in oracle.model.state_dict().items()}

    def compiled(compile_part: Callable[..., object], part: object, refs: dict[str, TensorRef]) -> bytes:
        shapes = {role: ref.shape for role, ref in refs.items()}
        done = compile_part(part, recipe, shapes, lambda role: [tensors[refs[role].name]])
        return b"".join(done.pieces)  # type: ignore[attr-defined]

    for index in range(LAYERS):
        data = compiled(compile_layer, spec.layer, dict(family.layer_tensors(spec, index)))
        (folder / f"llama_p{recipe.prefill_len}_l{index}_together.axmodel").write_bytes(data)
    (folder / "llama_post.axmodel").write_bytes(compiled(compile_post, spec.post, dict(family.post_tensors(spec))))
    with (folder / "embed.bin").open("wb") as file:
        write_embedding([tensors["model.embed_tokens.weight"]], file)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_name": "tiny",
                "template_filename_axmodel": f"llama_p{recipe.prefill_len}_l%d_together.axmodel",
                "axmodel_num": LAYERS,
                "filename_post_axmodel": "llama_post.axmodel",
                "filename_tokens_embed": "embed.bin",
                "tokens_embed_num": VOCAB_SIZE,
                "tokens_embed_size": 32,
                "post_config_path": "post_config.json",
                "eos_token_ids": [1 << 20],  # never generated: answers do not end
                "chat": True,
            }
        )
    )
    (folder / "post_config.json").write_text("{}")
    _write_tokenizer(folder / "tokenizer")


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token per byte, and the special tokens."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL_TOKENS)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
