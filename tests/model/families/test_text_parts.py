"""Language models inside vision-language models, against transformers' own classes on small random checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Config,
    InternVLConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    SmolVLMConfig,
)

from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.llm_build.input_model import read_model
from axzoo.model.families import load_family
from axzoo.model.text_parts import VISION_LANGUAGE_MODELS, language_model_config
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.parts.embedding_files import extract_embedding
from axzoo.parts.lock import make_lock, write_lock

TEXT = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "initializer_range": 0.2,
}  # fmt: skip
TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS: dict[str, PreTrainedConfig] = {
    "qwen2_vl": Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}, **TOKENS,
    ),
    "qwen2_5_vl, tied": Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE}, tie_word_embeddings=True,
        vision_config={"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 32},
        **TOKENS,
    ),
    "smolvlm": SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama", "head_dim": 8}, vision_config={**SIGLIP, "image_size": 28,
        "patch_size": 14}, image_token_id=90,
    ),
    "idefics3, tied": Idefics3Config(
        text_config={**TEXT, "model_type": "llama", "head_dim": 8}, vision_config={**SIGLIP, "image_size": 28,
        "patch_size": 14}, image_token_id=90, tie_word_embeddings=True,
    ),
    "internvl": InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"}, tie_word_embeddings=False, image_token_id=90,
        vision_config={**SIGLIP, "image_size": [28, 28], "patch_size": [14, 14]},
    ),
}  # fmt: skip

LAYOUTS: dict[str, Mapping[str, str]] = {
    "qwen2_vl": {"model.language_model.": "model.", "model.visual.": "visual."},
    "internvl": {"model.language_model.": "language_model.model.", "model.": "", "lm_head.": "language_model.lm_head."},
}
"""Names of tensors in checkpoints on the hub, where transformers renames them when it loads them."""


def _make(folder: Path, config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float("norm" in name), 0.2)
    folder.mkdir(parents=True)
    tied = config.tie_word_embeddings
    weights = {
        name: t.contiguous().clone() for name, t in model.state_dict().items() if not (tied and "lm_head" in name)
    }
    save_file(weights, folder / "model.safetensors")
    config.to_json_file(folder / "config.json", use_diff=False)
    write_json(folder / "source.json", {"source": {}, "root": ".", "files": {}})
    return model


def _assert_same(folder: Path, locks: Path, model: Any, family: str) -> None:
    ids = torch.arange(1, 30) * 3 % 90
    with torch.inference_mode():
        want = model(input_ids=ids[None]).logits[0]
    write_lock(make_lock(folder, family, 2), locks, folder, {})
    found = checkpoint_oracle(locks, folder / "source.json", 64).logits(ids.tolist())
    torch.testing.assert_close(found, want, atol=1e-5 * float(want.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_language_model_has_the_logits_of_transformers(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_type = name.partition(",")[0]
    folder = tmp_path / "checkpoint"
    model = _make(folder, MODELS[name])
    family = "qwen2" if "qwen" in name or name == "internvl" else "llama"
    with caplog.at_level(logging.INFO):
        _assert_same(folder, tmp_path / "locks", model, family)
    said = f"is that of {model_type}: its language model is built, its vision part is not"
    assert sum(said in message for message in caplog.messages) == 1
    spec = read_model(folder, {}, Path("override"), []).spec
    assert (spec.model_type, spec.num_hidden_layers, spec.vision) == (family, 2, None)
    extract_embedding(folder, tmp_path / "out")
    assert (tmp_path / "out/model.embed_tokens.weight.bfloat16.bin").stat().st_size == 97 * 32 * 2


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_checkpoints_with_the_names_of_the_hub(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    model = _make(folder, MODELS[name])
    weights = {}
    for old, tensor in load_file(folder / "model.safetensors").items():
        start, new = next((pair for pair in LAYOUTS[name].items() if old.startswith(pair[0])), ("", ""))
        weights[new + old.removeprefix(start)] = tensor
    save_file(weights, folder / "model.safetensors")
    _assert_same(folder, tmp_path / "locks", model, "qwen2")


def test_qwen2_vl_with_all_keys_in_one_mapping(tmp_path: Path) -> None:
    """As in the published Qwen2-VL and Qwen2.5-VL."""
    folder = tmp_path / "checkpoint"
    model = _make(folder, MODELS["qwen2_vl"])
    flat = {**TEXT, **TOKENS, "model_type": "qwen2_vl", "vision_config": {"depth": 1}, "tie_word_embeddings": False}
    rope = {"rope_theta": 10000.0, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    flat |= {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 2, "hidden_act": "silu", **rope}
    write_json(
        folder / "config.json", {**flat, "vision_token_id": 94, "architectures": ["X"], "torch_dtype": "float32"}
    )
    _assert_same(folder, tmp_path / "locks", model, "qwen2")


def test_internvl_chat_is_its_llm_config(tmp_path: Path) -> None:
    """As in the published InternVL2 and InternVL3, whose code is not part of transformers."""
    folder = tmp_path / "checkpoint"
    model = _make(folder, MODELS["internvl"])
    names = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    names |= {"model.vision_tower.": "vision_model.", "model.multi_modal_projector.": "mlp1."}
    weights = {}
    for old, tensor in load_file(folder / "model.safetensors").items():
        start = next(start for start in names if old.startswith(start))
        weights[names[start] + old.removeprefix(start)] = tensor
    save_file(weights, folder / "model.safetensors")
    inner = {**TEXT, "model_type": "qwen2", "tie_word_embeddings": False, "rope_theta": 10000.0, "hidden_act": "silu"}
    outer = {
        "model_type": "internvl_chat", "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448,
        "max_dynamic_patch": 12, "min_dynamic_patch": 1, "pad2square": False, "ps_version": "v2", "select_layer": -1,
        "template": "internvl2_5", "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True,
        "tie_word_embeddings": True, "vision_config": {"hidden_size": 32}, "torch_dtype": "bfloat16",
    }  # fmt: skip
    write_json(folder / "config.json", {**outer, "llm_config": inner})
    _assert_same(folder, tmp_path / "locks", model, "qwen2")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key outside": ({"new_key": 3}, "keys axzoo does not know: new_key"),
    "an unknown key inside": ({"text_config": {"new_key": 3}}, "keys axzoo does not know: new_key"),
    "another language model": (
        {"text_config": {"model_type": "mamba"}},
        "the language model of smolvlm has model_type 'mamba', which is not supported; supported are: llama",
    ),
    "two sizes": ({"hidden_size": 64}, "hidden_size is 64, but text_config has 32: correct one of them"),
    "no mapping": ({"text_config": 3}, "text_config must be a mapping, not 3"),
    "norms of queries": ({"text_config": {"qk_layer_norms": True}}, "keys axzoo does not know: qk_layer_norms"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=list(REFUSED))
def test_every_key_is_accounted_for(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    _make(folder, MODELS["smolvlm"])
    config = json.loads((folder / "config.json").read_text())
    inner = change.get("text_config", {})
    change = {**change, "text_config": {**config["text_config"], **inner} if isinstance(inner, dict) else inner}
    write_json(folder / "config.json", {**config, **change})
    with pytest.raises(AxzooError, match=message):
        make_lock(folder, "llama", 2)


def test_a_tensor_of_neither_part_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    _make(folder, MODELS["smolvlm"])
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.other.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(AxzooError, match=r"unexpected tensor model\.other\.weight"):
        make_lock(folder, "llama", 2)


def test_every_family_that_is_named_exists() -> None:
    for whole in VISION_LANGUAGE_MODELS.values():
        for family in whole.families.values():
            load_family(family)
    config = {"model_type": "llama", "text_config": 3}
    assert language_model_config(config, Path("x")) == config
