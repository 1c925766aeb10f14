"""Slices are checkpoints that axzoo reads as the same layers. The simulator's tables have the published sizes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from axzoo.backends import Backend, Needs, Order, part_job
from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.backends.pulsar2 import slice_checkpoint
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, write_json
from axzoo.model.families import load_family
from axzoo.model.reading import spec_of
from axzoo.parts.kind import PartKind
from axzoo.parts.lock import Lock, make_lock, write_lock
from axzoo.weights.recipe import Recipe
from pulsar2_simulator.table import layer_table, post_table

LAYERS = 4
COMMON: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 288, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "bos_token_id": 287, "eos_token_id": [285, 286], "pad_token_id": None, "torch_dtype": "float32",
}  # fmt: skip
CHATGLM = {
    "model_type": "chatglm", "hidden_size": 64, "ffn_hidden_size": 96, "num_layers": LAYERS, "num_attention_heads": 4,
    "multi_query_group_num": 2, "multi_query_attention": True, "padded_vocab_size": 288, "seq_length": 128,
    "layernorm_epsilon": 1e-5, "kv_channels": 16, "add_qkv_bias": True, "eos_token_id": 287,
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLM"},
}  # fmt: skip
CONFIGS = {
    "llama": COMMON | {"model_type": "llama", "tie_word_embeddings": True},
    "llama, untied, biases": COMMON | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen2, full attention listed": COMMON | {"model_type": "qwen2", "layer_types": ["full_attention"] * LAYERS},
    "qwen3": COMMON | {"model_type": "qwen3", "head_dim": 32, "architectures": ["Qwen3ForCausalLM"]},
    "phi3, fused": COMMON | {"model_type": "phi3", "sliding_window": 100},
    "minicpm": COMMON | {"model_type": "minicpm", "scale_depth": 1.4, "scale_emb": 12, "dim_model_base": 16},
    "minicpm, without a depth": COMMON | {"model_type": "minicpm", "scale_emb": 12},
    "chatglm, fused, own names": CHATGLM,
}


class SlicingBackend(Backend):
    """Writes slices, and no files for a board."""

    name, runs_here = "slicing", False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slice: slice_checkpoint.Slice

    def identity(self, kind: PartKind, chip: str) -> dict[str, Any]:
        return {}

    def refusal(self, model_type: str, chip: str, recipe: Recipe) -> str | None:
        return None

    def needs(self, kind: PartKind, recipe: Recipe, parameters: int | None, parts: int = 1) -> Needs:
        return Needs(1, 1)

    def compile(self, orders: Iterable[Order], folder: Path) -> Iterator[Mapping[str, Any]]:
        waiting = list(orders)
        if waiting[0].part.kind == "layer":
            self.slice = slice_checkpoint.write_layers(waiting, self.folder)
        else:
            self.slice = slice_checkpoint.write_post(waiting[0], self.folder)
        for order in waiting:
            order.output.write_bytes(b"x")
            yield {}

    def contradictions(self, *arguments: Any) -> Iterator[str]:
        yield from ()


def write_random(folder: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint with random weights for every tensor of the config's family."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    spec = spec_of(config, folder / "config.json", ())
    family, generator = load_family(spec.model_type), np.random.default_rng(0)
    refs = [*family.post_tensors(spec).values(), family.embed_tensor(spec)]
    refs += [ref for layer in range(spec.num_hidden_layers) for ref in family.layer_tensors(spec, layer).values()]

    save_file(
        {ref.name: generator.standard_normal(ref.shape).astype(np.float32) for ref in refs},
        folder / "model.safetensors",
    )
    write_json(folder / "source.json", {"source": {"path": "tiny"}, "root": ".", "files": {}})
    return folder


def cut(
    folder: Path, lock: Lock, root: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> slice_checkpoint.Slice:
    """The slice of these parts."""
    shutil.rmtree(root, ignore_errors=True)
    backend = SlicingBackend(root / "slice")
    monkeypatch.setattr(part_job, "load_backend", lambda name: backend)
    write_lock(lock, root / "locks", folder, {})
    files = [PartFile(root / f"locks/{part}.json", root / f"{part}.out", root / f"{part}.json") for part in parts]
    build_parts(PartJob(files, folder / "source.json", root / "store", recipe, "slicing", "AX650"))
    return backend.slice


RECIPE = Recipe(prefill_len=8, kv_cache_len=31)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("layers", [[0], [2], [0, 1, 2, 3], [1, 3]], ids=str)
def test_a_slice_of_layers(
    config: dict[str, Any], layers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locking the slice gives the same specs and digests of tensors as locking the model."""
    folder, kind = write_random(tmp_path / "model", config), config["model_type"]
    lock = make_lock(folder, kind, LAYERS)
    made = cut(folder, lock, tmp_path / "cut", [f"layer_{layer}" for layer in layers], monkeypatch, RECIPE)
    found = make_lock(made.folder, kind, len(layers))
    assert found.spec.vocab_size % 32 == 0
    for layer, part in zip(layers, found.of_kind("layer"), strict=True):
        whole = lock.of_kind("layer")[layer]
        assert {role: (t.blake3, t.shape) for role, t in part.tensors.items()} == {
            role: (t.blake3, t.shape) for role, t in whole.tensors.items()
        }
        assert part.spec["residual_scale"] == pytest.approx(whole.spec["residual_scale"], rel=1e-12)
        assert part.spec["input_scale"] == whole.spec["input_scale"]
        assert {**part.spec, "residual_scale": 0} == {**whole.spec, "residual_scale": 0}
    written = read_json(made.folder / "config.json")
    ids = [value for key, value in written.items() if key.endswith("_token_id") and value is not None]
    assert ids and all(0 <= value < found.spec.vocab_size for value in ids)
    assert "auto_map" not in written
    assert not (set(config) - set(written) - {"auto_map"}), "every other key is kept"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_slice_of_the_post_layer(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, kind = write_random(tmp_path / "model", config), config["model_type"]
    lock = make_lock(folder, kind, LAYERS)
    made = cut(folder, lock, tmp_path / "cut", ["post"], monkeypatch, RECIPE)
    (found,), (whole,) = make_lock(made.folder, kind, 1).of_kind("post"), lock.of_kind("post")
    assert found.spec == whole.spec
    assert {role: t.blake3 for role, t in found.tensors.items()} == {
        role: t.blake3 for role, t in whole.tensors.items()
    }


def test_the_host_scales_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_random(tmp_path / "model", CONFIGS["minicpm"])
    lock = make_lock(folder, "minicpm", LAYERS)
    scales = {
        (layer, who): cut(
            folder, lock, tmp_path / "cut", [f"layer_{layer}"], monkeypatch, replace(RECIPE, embedding_scale=who)
        ).spec.layer_spec(0).input_scale
        for layer in (0, 1) for who in ("graph", "host")
    }  # fmt: skip
    assert scales == {(0, "graph"): 12, (0, "host"): 1, (1, "graph"): 1, (1, "host"): 1}


def test_a_layer_that_depends_on_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows from max_window_layers on: a slice of layer 3 would be its layer 0, without a window."""
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
    folder = write_random(tmp_path / "model", COMMON | {"model_type": "qwen2"} | window)
    lock = make_lock(folder, "qwen2", LAYERS)
    cut(folder, lock, tmp_path / "cut", ["layer_0"], monkeypatch, RECIPE)
    with pytest.raises(AxzooError, match="layer_3 cannot be compiled by itself: its sliding_window would differ"):
        cut(folder, lock, tmp_path / "cut", ["layer_3"], monkeypatch, RECIPE)


def test_an_older_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_random(tmp_path / "model", CONFIGS["llama"])
    lock = replace(make_lock(folder, "llama", LAYERS), config={})
    with pytest.raises(AxzooError, match=r"the lock has no config.json, because an older axzoo wrote it: lock the"):
        cut(folder, lock, tmp_path / "cut", ["layer_0"], monkeypatch, RECIPE)


def test_quantized_checkpoints_are_dequantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slice has plain weights, so it must not say that they are quantized."""
    folder = write_random(tmp_path / "model", CONFIGS["llama"])
    lock = make_lock(folder, "llama", LAYERS)
    quantized = replace(lock, config={**lock.config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    made = cut(folder, quantized, tmp_path / "cut", ["layer_0"], monkeypatch, RECIPE)
    assert "quantization_config" not in read_json(made.folder / "config.json")


def test_random_weights_have_no_zero_rows_and_no_unit_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's tool stores such vectors and equal rows differently."""
    folder = write_random(tmp_path / "model", CONFIGS["llama, untied, biases"])
    lock = make_lock(folder, "llama", LAYERS)
    for part in ("layer_1", "post"):
        made = cut(folder, lock, tmp_path / "cut", [part], monkeypatch, RECIPE)
        for name, values in load_file(made.folder / "model.safetensors").items():
            rows = values.reshape(len(values), -1)
            assert np.abs(rows).max(1).min() > 0, name
            assert len({row.tobytes() for row in rows}) == len(rows), name


# The simulator's tables


def random_layer(hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int, qk_norm: bool, unit: bool) -> Any:
    generator = np.random.default_rng(1)

    def matrix(rows: int, columns: int) -> Any:
        return generator.standard_normal((rows, columns)).astype(np.float32)

    def norm(size: int) -> Any:
        return np.ones(size, np.float32) if unit else (1 + generator.standard_normal(size) / 9).astype(np.float32)

    tensors = {
        "input_layernorm.weight": norm(hidden),
        "post_attention_layernorm.weight": norm(hidden),
        "self_attn.q_proj.weight": matrix(heads * head_dim, hidden),
        "self_attn.k_proj.weight": matrix(kv_heads * head_dim, hidden),
        "self_attn.v_proj.weight": matrix(kv_heads * head_dim, hidden),
        "self_attn.o_proj.weight": matrix(hidden, heads * head_dim),
        "mlp.gate_proj.weight": matrix(inner, hidden),
        "mlp.up_proj.weight": matrix(inner, hidden),
        "mlp.down_proj.weight": matrix(hidden, inner),
    }
    if qk_norm:
        tensors |= {f"self_attn.{letter}_norm.weight": norm(head_dim) for letter in "qk"}
    return tensors


TINY = (256, 512, 8, 2, 32, False, True)
SMOLLM2 = (576, 1536, 9, 3, 64, False, False)
QWEN3 = (1024, 3072, 16, 8, 128, True, False)


@pytest.mark.parametrize(
    "shape, kind, cache_len, chunk, groups, size",
    [
        (TINY, "s8", 127, 64, 1, 665_220),
        (TINY, "s4", 127, 64, 1, 348_804),
        (TINY, "bf16", 127, 64, 1, 2_245_376),
        (SMOLLM2, "s4", 255, 128, 1, 1_943_428),
        (QWEN3, "s4", 255, 128, 1, 8_939_524),
        (QWEN3, "s8", 256, 128, 2, 17_360_392),
        ((*QWEN3[:-1], True), "s8", 256, 128, 2, 17_346_568),
    ],
)
def test_the_simulators_tables_have_the_published_sizes(
    shape: Any, kind: str, cache_len: int, chunk: int, groups: int, size: int
) -> None:
    hidden, inner, heads, kv_heads, head_dim, qk_norm, _ = shape
    config = {
        "model_type": "qwen3" if qk_norm else "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
    }  # fmt: skip
    table = layer_table(config, random_layer(*shape), kind, cache_len, chunk, groups)
    assert len(table) == size


def test_published_offsets_of_one_table() -> None:
    """SmolLM2-135M, s4: where each matrix begins."""
    tensors = random_layer(*SMOLLM2)
    config = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    table = layer_table(config | {"num_key_value_heads": 3, "head_dim": 64}, tensors, "s4", 255, 128, 1)
    assert table.index(tensors["input_layernorm.weight"].tobytes()) == 1024
    assert table.index(np.float32(32767).tobytes()) == 5636 - 4
    assert table.index(tensors["post_attention_layernorm.weight"].tobytes()) == 531_716
    scales = -np.take_along_axis(w := tensors["self_attn.v_proj.weight"], np.abs(w).argmax(1)[:, None], 1)[:64, 0] / 8
    assert table.index(scales.astype(np.float32).tobytes()) == 5636 + 64 * (18 * 16 + 8)


def test_equal_blocks_are_stored_once() -> None:
    head = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    norm = np.full(64, 2, np.float32)
    head[64:] = head[:32]
    assert len(post_table(norm, head, "s8")) == 64 * 8 + 4 + 2 * (32 * 36 * math.ceil(64 / 36) + 512)
