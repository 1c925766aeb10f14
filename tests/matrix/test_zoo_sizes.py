"""The sizes in config/zoo.yaml, recomputed from values of each model's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from axzoo.forecast.sizes import anatomy_of_sizes
from axzoo.matrix.entries import load_zoo

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Shape:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def layer(self) -> int:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * (q + kv) + self.qkv_bias * (q + 2 * kv) + self.qk_norm * 2 * self.head_dim
        return attention + 3 * self.hidden * self.inner + 2 * self.hidden

    @property
    def post(self) -> int:
        return self.hidden + self.vocab * self.hidden

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


class Phi2(Shape):
    """Each linear has a bias; one LayerNorm per layer; two matrices in the MLP."""

    @property
    def layer(self) -> int:
        attention = 4 * (self.hidden * self.hidden + self.hidden)
        return attention + 2 * self.hidden * self.inner + self.inner + self.hidden + 2 * self.hidden

    @property
    def post(self) -> int:
        return 2 * self.hidden + self.vocab * self.hidden + self.vocab


LLAMA_2_7B = Shape(4096, 11008, 32, 32, 32, 128, 32000)
LLAMA_3_8B = Shape(4096, 14336, 32, 32, 8, 128, 128256)
LLAMA_3_70B = Shape(8192, 28672, 80, 64, 8, 128, 128256)
LLAMA_3_2_1B = Shape(2048, 8192, 16, 32, 8, 64, 128256)
LLAMA_3_2_3B = Shape(3072, 8192, 28, 24, 8, 128, 128256)
QWEN1_5_0_5B = Shape(1024, 2816, 24, 16, 16, 64, 151936, qkv_bias=True)
QWEN2_0_5B = Shape(896, 4864, 24, 14, 2, 64, 151936, qkv_bias=True)
QWEN2_1_5B = Shape(1536, 8960, 28, 12, 2, 128, 151936, qkv_bias=True)
QWEN2_7B = Shape(3584, 18944, 28, 28, 4, 128, 152064, qkv_bias=True)
QWEN2_5_14B = Shape(5120, 13824, 48, 40, 8, 128, 152064, qkv_bias=True)
PHI_3_MINI = Shape(3072, 8192, 32, 32, 32, 96, 32064)
MINICPM_2B = Shape(2304, 5760, 40, 36, 36, 64, 122753)
SMOLLM_135M = Shape(576, 1536, 30, 9, 3, 64, 49152)
SMOLLM_360M = Shape(960, 2560, 32, 15, 5, 64, 49152)
SMOLLM_1_7B = Shape(2048, 8192, 24, 32, 32, 64, 49152)
CHATGLM3_6B = Shape(4096, 13696, 28, 32, 2, 128, 65024, qkv_bias=True)

SHAPES = {
    "Llama-2-7b-hf": LLAMA_2_7B,
    "Llama-2-7b-chat-hf": LLAMA_2_7B,
    "Llama-2-13b-chat-hf": Shape(5120, 13824, 40, 40, 40, 128, 32000),
    "Meta-Llama-3-8B": LLAMA_3_8B,
    "Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
    "Meta-Llama-3-70B-Instruct": LLAMA_3_70B,
    "Llama-3.1-8B-Instruct": LLAMA_3_8B,
    "Llama-3.1-70B-Instruct": LLAMA_3_70B,
    "Llama-3.2-1B": LLAMA_3_2_1B,
    "Llama-3.2-1B-Instruct": LLAMA_3_2_1B,
    "Llama-3.2-3B-Instruct": LLAMA_3_2_3B,
    "TinyLlama-1.1B-Chat-v1.0": Shape(2048, 5632, 22, 32, 4, 64, 32000),
    "Qwen1.5-0.5B": QWEN1_5_0_5B,
    "Qwen1.5-0.5B-Chat": QWEN1_5_0_5B,
    "Qwen1.5-1.8B-Chat": Shape(2048, 5504, 24, 16, 16, 128, 151936, qkv_bias=True),
    "Qwen1.5-4B-Chat": Shape(2560, 6912, 40, 20, 20, 128, 151936, qkv_bias=True),
    "Qwen1.5-7B-Chat": Shape(4096, 11008, 32, 32, 32, 128, 151936, qkv_bias=True),
    "Qwen1.5-14B-Chat": Shape(5120, 13696, 40, 40, 40, 128, 152064, qkv_bias=True),
    "Qwen2-0.5B-Instruct": QWEN2_0_5B,
    "Qwen2-1.5B-Instruct": QWEN2_1_5B,
    "Qwen2-7B-Instruct": QWEN2_7B,
    "Qwen2-72B-Instruct": Shape(8192, 29568, 80, 64, 8, 128, 152064, qkv_bias=True),
    "Qwen2.5-0.5B-Instruct": QWEN2_0_5B,
    "Qwen2.5-1.5B-Instruct": QWEN2_1_5B,
    "Qwen2.5-3B-Instruct": Shape(2048, 11008, 36, 16, 2, 128, 151936, qkv_bias=True),
    "Qwen2.5-7B-Instruct": QWEN2_7B,
    "Qwen2.5-14B-Instruct": QWEN2_5_14B,
    "Qwen3-0.6B": Shape(1024, 3072, 28, 16, 8, 128, 151936, qk_norm=True),
    "Qwen3-1.7B": Shape(2048, 6144, 28, 16, 8, 128, 151936, qk_norm=True),
    "Qwen3-4B": Shape(2560, 9728, 36, 32, 8, 128, 151936, qk_norm=True),
    "Qwen3-8B": Shape(4096, 12288, 36, 32, 8, 128, 151936, qk_norm=True),
    "Qwen3-14B": Shape(5120, 17408, 40, 40, 8, 128, 151936, qk_norm=True),
    "DeepSeek-R1-Distill-Qwen-1.5B": QWEN2_1_5B,
    "DeepSeek-R1-Distill-Qwen-7B": QWEN2_7B,
    "DeepSeek-R1-Distill-Qwen-14B": QWEN2_5_14B,
    "phi-2": Phi2(2560, 10240, 32, 32, 32, 80, 51200),
    "Phi-3-mini-4k-instruct": PHI_3_MINI,
    "Phi-3-mini-128k-instruct": PHI_3_MINI,
    "Phi-3-medium-4k-instruct": Shape(5120, 17920, 40, 40, 10, 128, 32064),
    "Phi-3.5-mini-instruct": PHI_3_MINI,
    "MiniCPM-1B-sft-bf16": Shape(1536, 3840, 52, 24, 8, 64, 73440),
    "MiniCPM-2B-sft-bf16": MINICPM_2B,
    "MiniCPM-2B-128k": Shape(2304, 5760, 40, 36, 36, 64, 122760),
    "MiniCPM-V-2": MINICPM_2B,
    "SmolLM-135M": SMOLLM_135M,
    "SmolLM-135M-Instruct": SMOLLM_135M,
    "SmolLM-360M-Instruct": SMOLLM_360M,
    "SmolLM-1.7B-Instruct": SMOLLM_1_7B,
    "SmolLM2-135M-Instruct": SMOLLM_135M,
    "SmolLM2-360M-Instruct": SMOLLM_360M,
    "SmolLM2-1.7B-Instruct": SMOLLM_1_7B,
    "chatglm3-6b": CHATGLM3_6B,
    "chatglm3-6b-32k": CHATGLM3_6B,
    "openbuddy-llama3.2-1b-v23.1-131k": LLAMA_3_2_1B,
    "openbuddy-llama3.2-3b-v23.2-131k": LLAMA_3_2_3B,
    "openbuddy-zen-3b-v21.2-32k": Shape(4096, 5888, 32, 32, 8, 128, 135680),
}

# Parameters as shown on the hub, and whether lm_head and embedding are counted once.
PUBLISHED = {
    "Llama-2-7b-hf": (6_738_415_616, False),
    "Llama-2-13b-chat-hf": (13_015_864_320, False),
    "Meta-Llama-3-8B": (8_030_261_248, False),
    "Meta-Llama-3-70B-Instruct": (70_553_706_496, False),
    "Llama-3.2-1B": (1_235_814_400, True),
    "Llama-3.2-3B-Instruct": (3_212_749_824, True),
    "TinyLlama-1.1B-Chat-v1.0": (1_100_048_384, False),
    "Qwen1.5-0.5B": (463_987_712, True),
    "Qwen1.5-1.8B-Chat": (1_836_828_672, False),
    "Qwen1.5-4B-Chat": (3_950_369_280, False),
    "Qwen1.5-7B-Chat": (7_721_324_544, False),
    "Qwen1.5-14B-Chat": (14_167_290_880, False),
    "Qwen2-0.5B-Instruct": (494_032_768, True),
    "Qwen2-1.5B-Instruct": (1_543_714_304, True),
    "Qwen2-7B-Instruct": (7_615_616_512, False),
    "Qwen2-72B-Instruct": (72_706_203_648, False),
    "Qwen2.5-3B-Instruct": (3_085_938_688, True),
    "Qwen2.5-14B-Instruct": (14_770_033_664, False),
    "Qwen3-0.6B": (596_049_920, True),
    "Qwen3-1.7B": (1_720_574_976, True),
    "Qwen3-4B": (4_022_468_096, True),
    "Qwen3-8B": (8_190_735_360, False),
    "Qwen3-14B": (14_768_307_200, False),
    "DeepSeek-R1-Distill-Qwen-1.5B": (1_777_088_000, False),
    "phi-2": (2_779_683_840, False),
    "Phi-3-mini-4k-instruct": (3_821_079_552, False),
    "Phi-3-medium-4k-instruct": (13_960_238_080, False),
    "MiniCPM-2B-sft-bf16": (2_724_880_896, True),
    "SmolLM-135M": (134_515_008, True),
    "SmolLM-360M-Instruct": (361_821_120, True),
    "SmolLM-1.7B-Instruct": (1_711_376_384, True),
    "chatglm3-6b": (6_243_584_000, False),
}

ZOO = load_zoo(ROOT / "config/zoo.yaml", chips=ROOT / "config/chips.yaml")


def test_every_model_has_a_shape_here() -> None:
    assert set(SHAPES) == set(ZOO.models)


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_match_the_model_shape(name: str) -> None:
    shape, entry = SHAPES[name], ZOO.models[name]
    assert entry.num_hidden_layers == shape.layers
    assert entry.sizes is not None
    vision = {"vision": 427_261_984} if name == "MiniCPM-V-2" else {}
    assert entry.sizes.model_dump(exclude_none=True) == {
        "layer": shape.layer,
        "post": shape.post,
        "kv_width": shape.kv_width,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        **vision,
    }


@pytest.mark.parametrize("name", SHAPES)
def test_the_width_of_queries_follows_from_the_sizes(name: str) -> None:
    """Forecasts need it, and the matrix does not give it."""
    shape, entry = SHAPES[name], ZOO.models[name]
    assert entry.sizes is not None
    anatomy = anatomy_of_sizes(entry, entry.sizes.model_dump(exclude_none=True))
    assert anatomy.q_width == shape.heads * shape.head_dim
    assert not anatomy.assumed


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_sum_to_the_published_parameter_count(name: str) -> None:
    (parameters, tied), entry, shape = PUBLISHED[name], ZOO.models[name], SHAPES[name]
    assert entry.sizes is not None
    embedding = 0 if tied else shape.vocab * shape.hidden
    assert entry.num_hidden_layers * entry.sizes.layer + entry.sizes.post + embedding == parameters
