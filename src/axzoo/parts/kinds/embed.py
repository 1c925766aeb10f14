"""The embedding table, from which host programs read single rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from axzoo.model.spec import DecoderSpec, FromDict
from axzoo.parts.kind import CompiledFiles, PartKind, RowReader
from axzoo.weights.formats import embedding_storage  # unfollowed: describes files
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from axzoo.model.families import Family
    from axzoo.model.spec import TensorRef

WEIGHT = "embed.weight"
"""The role of the part's only tensor."""


@dataclass(frozen=True)
class EmbeddingSpec(FromDict):
    """The shape of the table, [vocab_size, hidden_size]."""

    vocab_size: int
    hidden_size: int


class Embed(PartKind):
    """The embedding as raw little-endian bf16 rows. axzoo writes the same file for every backend."""

    name = "embed"
    label = "extracting embeddings"
    suffix = ".bin"
    code = "axzoo.weights.bf16"
    on_device = False

    def stem(self, model_type: str, recipe: Recipe) -> str:
        return ""

    def tail(self, recipe: Recipe, index: int | str | None = None) -> str:
        return f"model.embed_tokens.weight.bfloat16{self.suffix}"

    def spec(self, model: DecoderSpec, index: int | None) -> EmbeddingSpec:
        return EmbeddingSpec(model.vocab_size, model.layer.hidden_size)

    def read_spec(self, data: Mapping[str, Any]) -> EmbeddingSpec:
        return EmbeddingSpec.from_dict(data)

    def tensors(self, family: Family, model: DecoderSpec, index: int | None) -> Mapping[str, TensorRef]:
        return {WEIGHT: family.embed_tensor(model)}

    def choices(self, recipe: Recipe) -> dict[str, Any]:
        return {}

    def weight_type(self, recipe: Recipe) -> str:
        return "bf16"

    def storage(self, recipe: Recipe) -> dict[str, Any]:
        return embedding_storage()

    def parameters(self, sizes: Mapping[str, int]) -> int:
        return sizes["post"]  # the same shape as lm_head

    def paths(self, files: CompiledFiles) -> tuple[Path, ...]:
        return (files.embedding,)

    def config(self, model: DecoderSpec, recipe: Recipe) -> dict[str, Any]:
        return {
            "filename_tokens_embed": self.file_name(model.model_type, recipe),
            "tokens_embed_num": model.vocab_size,
            "tokens_embed_size": model.layer.hidden_size,
        }

    def write(self, read: RowReader, file: BinaryIO) -> None:
        from axzoo.weights.bf16 import write_embedding  # unfollowed: `code` names it

        write_embedding(read(WEIGHT), file)
