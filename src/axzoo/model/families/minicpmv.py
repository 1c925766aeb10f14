"""MiniCPM-V 2.0: MiniCPM with the tensor prefix `llm.`, a SigLIP tower (`vpm.`) and a resampler."""

from __future__ import annotations

import math
from dataclasses import replace

from axzoo.model.config_view import ConfigView
from axzoo.model.families import minicpm
from axzoo.model.families._hugging_face import embed_tokens, llama_layer, llama_post
from axzoo.model.spec import DecoderSpec, TensorRef, VisionSpec

CONFIG_KEYS = minicpm.CONFIG_KEYS
ROPE_TYPES = minicpm.ROPE_TYPES
IGNORED_TENSORS = r"vpm\.(blocks\.26|attn_pool)\..*"
PARITY_TESTS = "tests/model/families/test_published_parity.py -k minicpmv"

_TOWERS = {
    "vit_so400m_patch14_siglip_384.webli": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
    }
}
"""The dimensions of timm's models by name (timm, vision_transformer.py). config.json names only the model."""

_HEAD_DIM = 128
"""Of the resampler."""


def decoder_spec(config: ConfigView) -> DecoderSpec:
    config.ignore("batch_vision_input", "image_size", "mm_use_im_start_end", "slice_mode")
    spec = minicpm.decoder_spec(config, "minicpmv")
    return replace(spec, vision=_vision_spec(config, spec.layer.hidden_size))


def _vision_spec(config: ConfigView, hidden_size: int) -> VisionSpec:
    """The tower that `vision_encoder` names. A `vision_config` with its dimensions takes precedence."""
    name = config.choice("vision_encoder", list(_TOWERS), next(iter(_TOWERS)))
    tower = config.sizes("vision_config", _TOWERS[name])
    patch_size = config.size("patch_size", 14)
    query_grid = math.isqrt(config.size("query_num", 64))
    return VisionSpec(
        patch_size=patch_size,
        hidden_size=tower["hidden_size"],
        intermediate_size=tower["intermediate_size"],
        num_hidden_layers=tower["num_hidden_layers"] - int(config.flag("drop_vision_last_layer", True)),
        num_attention_heads=tower["num_attention_heads"],
        position_grid=tower["image_size"] // patch_size,
        output_size=hidden_size,
        query_grid=query_grid,
        resampler_heads=max(hidden_size // _HEAD_DIM, 1),
        max_slice_nums=config.size("max_slice_nums", 9),
        scale_resolution=config.size("scale_resolution", 448),
    )


def layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]:
    return llama_layer(spec, layer, "llm.model")


def post_tensors(spec: DecoderSpec) -> dict[str, TensorRef]:
    return llama_post(spec, "llm.")


def embed_tensor(spec: DecoderSpec) -> TensorRef:
    return embed_tokens(spec, "llm.")
