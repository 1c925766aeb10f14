"""Families that transformers lacks, compared with their published code: the oracle, and the whole built model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

import tiny_vision
from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.check.metrics import cosine
from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.parts.kinds import part_ids
from axzoo.parts.lock import make_lock, write_lock
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.decoder import Decoder
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.model import LayerwiseNetwork, Model
from axzoo.weights.recipe import Recipe
from published import chatglm, minicpm
from tiny_model import EXACT

PROMPT, TOKENS = 21, EXACT.kv_cache_len
"""Three prefill chunks of 8, the last one padded, then decoding until the cache is full."""

DYNAMIC = {"type": "dynamic", "factor": 4.0}
LINEAR = {"type": "linear", "factor": 2.5}
GQA = {"num_key_value_heads": 2}
UNTIED = {"tie_word_embeddings": False}
WITH_DEFAULTS = ("num_key_value_heads", "scale_emb", "scale_depth", "dim_model_base")

TABLE: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "minicpm, tied by default": (minicpm, minicpm.config()),
    "minicpm, tied, gqa, biases": (minicpm, minicpm.config(tie_word_embeddings=True, attention_bias=True, **GQA)),
    "minicpm, untied, linear rope": (minicpm, minicpm.config(rope_scaling=LINEAR, rope_theta=500.0, **UNTIED)),
    "minicpm, dynamic rope beyond its length": (
        minicpm,
        minicpm.config(rope_scaling=DYNAMIC, rope_theta=100.0, max_position_embeddings=16, max_length=32, **UNTIED),
    ),
    "minicpm, dynamic rope within its length": (minicpm, minicpm.config(rope_scaling=DYNAMIC, rope_theta=100.0)),
    "minicpm, odd vocabulary, gqa 7:1": (
        minicpm,
        minicpm.config(hidden_size=56, num_attention_heads=7, num_key_value_heads=1, vocab_size=263),
    ),
    "minicpm, every default": (minicpm, {k: v for k, v in minicpm.config().items() if k not in WITH_DEFAULTS}),
    "minicpmv": (minicpm, tiny_vision.config(vocab_size=263)),
    "minicpmv, tied, gqa": (minicpm, tiny_vision.config(vocab_size=263, tie_word_embeddings=True, **GQA)),
    "chatglm, 2 groups of 6 heads": (chatglm, chatglm.config()),
    "chatglm, rope_ratio 50": (chatglm, chatglm.config(rope_ratio=50, seq_length=32)),
    "chatglm, as transformers saves it again": (
        chatglm,
        chatglm.config(vocab_size=263, classifier_dropout=None, quantization_bit=0, pre_seq_len=None, rope_ratio=1),
    ),
    "chatglm, no bias, a group per head": (chatglm, chatglm.config(add_qkv_bias=False, multi_query_group_num=6)),
    "chatglm, one group, heads as wide as hidden_size / heads": (
        chatglm,
        chatglm.config(hidden_size=48, kv_channels=8, multi_query_group_num=1),
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, and the published model with exactly the stored values."""

    folder: Path
    definition: ModuleType
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def num_hidden_layers(self) -> int:
        return int(self.config.get("num_hidden_layers") or self.config["num_layers"])

    @property
    def source(self) -> Path:
        return self.folder / "source.json"

    @property
    def embedding_shape(self) -> tuple[int, int]:
        vocab_size, hidden_size = self.weights[self.definition.EMBEDDING].shape
        return vocab_size, hidden_size

    @property
    def sequence(self) -> list[int]:
        """As many ids as the files hold positions, the length that length-dependent rope types are compiled for."""
        return [int(i) for i in np.random.default_rng(1).integers(0, self.embedding_shape[0], EXACT.positions)]

    @property
    def ids(self) -> list[int]:
        return self.sequence[:TOKENS]

    def logits(self) -> NDArray[np.float32]:
        """Logits [TOKENS, vocab_size] after each of `ids`, as the start of the whole sequence."""
        logits: Tensor = self.definition.logits(self.config, self.weights, torch.tensor(self.sequence))
        return logits[:TOKENS].numpy()


def _make_checkpoint(folder: Path, definition: ModuleType, config: Mapping[str, Any]) -> Checkpoint:
    """Random weights. The embedding is exact in bf16, like the board's."""
    torch.manual_seed(0)
    weights = {name: _random(name, shape) for name, shape in definition.shapes(config).items()}
    stored = weights
    if config["model_type"] == "minicpmv":
        vision = tiny_vision.vision_model(config["hidden_size"]).tensors()
        stored = {f"llm.{name}": tensor for name, tensor in weights.items()} | vision
    save_file(stored, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    write_json(folder / "source.json", {"source": {"path": "tiny"}, "root": ".", "files": {}})
    return Checkpoint(folder, definition, config, weights)


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    """Matrices that preserve magnitudes, so that rounding errors are not amplified."""
    if len(shape) == 1:
        return torch.randn(shape) * 0.3 + (0 if name.endswith("bias") else 1)
    if "embed" in name:
        return (torch.randn(shape) * 0.3).bfloat16().float()
    return torch.randn(shape) * shape[1] ** -0.5


@pytest.fixture(scope="module", params=TABLE.values(), ids=list(TABLE))
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _make_checkpoint(tmp_path_factory.mktemp("published"), *request.param)


def _build(checkpoint: Checkpoint, recipe: Recipe, root: Path) -> Model:
    """Builds lock, layers, post layer and embedding under `root` and loads them in exact mode."""
    locks = root / "locks"
    write_lock(
        make_lock(checkpoint.folder, checkpoint.model_type, checkpoint.num_hidden_layers), locks, checkpoint.folder, {}
    )

    folder = root / "bundle"
    parts = [part for part in part_ids(checkpoint) if part.kind in ("layer", "post", "embed")]
    files = [PartFile(locks / part.lock_file, folder / part.name, root / part.name) for part in parts]
    build_parts(PartJob(files, checkpoint.source, root / "store", recipe, "host", "AX650"))
    *layers, post, embed = (file.output for file in files)
    decoder = Decoder([InferenceSession(layer) for layer in layers])
    return Model(Embedding(embed, *checkpoint.embedding_shape), LayerwiseNetwork(decoder, InferenceSession(post)))


def _all_logits(model: Model, layers: int, ids: list[int]) -> NDArray[np.float32]:
    """Logits after each token: for the prompt from the last layer's hidden states, for the rest from decoding."""
    hidden: list[NDArray[Any]] = []
    final = model.prefill(ids[:PROMPT], lambda layer, _, rows: hidden.append(rows) if layer == layers - 1 else None)
    logits = [model.logits(row) for row in np.concatenate(hidden)[:, None, None]]
    np.testing.assert_array_equal(final, logits[-1])
    return np.stack(logits + [model.decode(token) for token in ids[PROMPT:]])


def _assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32], tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


def test_the_oracle_agrees_with_the_published_code(variant: Checkpoint, tmp_path: Path) -> None:
    write_lock(make_lock(variant.folder, variant.model_type, variant.num_hidden_layers), tmp_path, variant.folder, {})
    oracle = checkpoint_oracle(tmp_path, variant.source, EXACT.positions)
    _assert_close(oracle.logits(variant.ids).numpy(), variant.logits(), 2e-5)


def test_the_built_model_agrees_with_the_published_code(variant: Checkpoint, tmp_path: Path) -> None:
    model = _build(variant, EXACT, tmp_path)
    _assert_close(_all_logits(model, variant.num_hidden_layers, variant.ids), variant.logits(), 2e-4)


def test_bf16_hidden_states_are_close(variant: Checkpoint, tmp_path: Path) -> None:
    model = _build(variant, replace(EXACT, hidden_state_type="bf16"), tmp_path)
    found, wanted = _all_logits(model, variant.num_hidden_layers, variant.ids), variant.logits()
    assert min(map(cosine, found, wanted)) >= 0.9999


def test_a_dynamic_rope_changes_beyond_the_training_length() -> None:
    """Shows that the comparison above covers both cases: within the training length and beyond it."""
    long, short = (minicpm.config(rope_scaling=DYNAMIC, max_position_embeddings=trained) for trained in (16, 128))
    weights = {name: _random(name, shape) for name, shape in minicpm.shapes(long).items()}
    ids = torch.arange(TOKENS)
    assert torch.equal(minicpm.logits(long, weights, ids[:16]), minicpm.logits(short, weights, ids[:16]))
    assert not torch.allclose(minicpm.logits(long, weights, ids), minicpm.logits(short, weights, ids), rtol=0.01)


def test_chatglm_heads_must_be_a_multiple_of_the_groups(tmp_path: Path) -> None:
    checkpoint = _make_checkpoint(tmp_path, chatglm, chatglm.config(multi_query_group_num=4))
    with pytest.raises(AxzooError, match="is 6, but must be a multiple of multi_query_group_num, 4"):
        make_lock(checkpoint.folder, "chatglm", 3)


def test_a_dynamic_rope_is_limited_by_its_factor(tmp_path: Path) -> None:
    config = minicpm.config(rope_scaling={"type": "dynamic", "factor": 1.5}, max_position_embeddings=16)
    with pytest.raises(AxzooError, match=r"31 positions, and the model supports 24"):
        _build(_make_checkpoint(tmp_path, minicpm, config), EXACT, tmp_path)
