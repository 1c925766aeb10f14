"""The language model of MiniCPM-V 2.0: MiniCPM with the tensor prefix `llm.`."""

from __future__ import annotations

from axzoo.model.config_view import ConfigView
from axzoo.model.families import minicpm
from axzoo.model.families._hugging_face import embed_tokens, llama_layer, llama_post
from axzoo.model.spec import DecoderSpec, TensorRef

CONFIG_KEYS = minicpm.CONFIG_KEYS
ROPE_TYPES = minicpm.ROPE_TYPES
IGNORED_TENSORS = r"(vpm|resampler)\..*"
PARITY_TESTS = "tests/model/families/test_published_parity.py -k minicpmv"

VISION_KEYS = (
    "batch_vision_input", "drop_vision_last_layer", "image_size", "max_slice_nums", "mm_use_im_start_end", "patch_size",
    "query_num", "scale_resolution", "slice_mode", "vision_encoder",
)  # fmt: skip
"""Keys of the vision tower."""


def decoder_spec(config: ConfigView) -> DecoderSpec:
    config.ignore(*VISION_KEYS)
    return minicpm.decoder_spec(config, "minicpmv")


def layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]:
    return llama_layer(spec, layer, "llm.model")


def post_tensors(spec: DecoderSpec) -> dict[str, TensorRef]:
    return llama_post(spec, "llm.")


def embed_tensor(spec: DecoderSpec) -> TensorRef:
    return embed_tokens(spec, "llm.")
