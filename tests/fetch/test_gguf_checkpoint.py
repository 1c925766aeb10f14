import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gguf import Tiny
from transformers import AutoModelForCausalLM

from axzoo.checkpoint.gguf.conversion import FILES, convert
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.model.config_view import ConfigView
from axzoo.model.families.llama import decoder_spec
from axzoo.model.reading import read_spec
from axzoo.model.rope import frequencies
from axzoo.tokenizer.local import find_tokenizer, load_tokenizer

SCORED = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [1.0]}


def converted(tiny: Tiny, folder: Path, **options: Any) -> Path:
    output = folder / "checkpoint"
    output.mkdir()
    convert(tiny.write(folder / "tiny.gguf", **options), output)
    return output


@pytest.mark.parametrize("kind", ["tiny", "untied"])
def test_transformers_computes_the_original_logits(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    original: Tiny = request.getfixturevalue(kind)
    model = AutoModelForCausalLM.from_pretrained(converted(original, tmp_path), dtype=torch.float32).eval()
    ids = torch.randint(0, original.model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = original.model(ids).logits, model(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=0)  # fp32 in, fp32 out: the very same numbers


def test_config_is_what_the_family_reads(tiny: Tiny, tmp_path: Path) -> None:
    output = converted(tiny, tmp_path)
    config = json.loads((output / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5  # stored as 9.999999747378752e-06
    assert config["rope_theta"] == 5000.0
    assert config["tie_word_embeddings"] is True
    assert config["torch_dtype"] == "float32"
    view = ConfigView(config, output / "config.json")
    spec = decoder_spec(view)
    view.finish()
    assert (spec.num_hidden_layers, spec.layer.head_dim, spec.layer.kv_size) == (2, 8, 16)
    assert json.loads((output / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def test_equal_files_give_equal_bytes(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = converted(tiny, tmp_path / "first"), converted(tiny, tmp_path / "second")
    assert sorted(path.name for path in first.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "gemma2"}, "architecture 'gemma2', but axzoo converts only llama and qwen2"),
        ({"llama.rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.type is 'yarn', but only none and linear"),
        ({"llama.rope.scaling.type": "linear"}, r"llama\.rope\.scaling\.factor is missing"),
        ({"llama.rope.scaling.attn_factor": 1.5}, r"sets llama\.rope\.scaling\.attn_factor"),
        ({"llama.expert_count": 8}, r"sets llama\.expert_count"),
        ({"llama.block_count": None}, r"llama\.block_count is missing"),
        ({"llama.attention.head_count_kv": [1, 2]}, r"head_count_kv is \[1, 2\]"),
        ({"llama.rope.dimension_count": 4}, r"rope\.dimension_count must equal the head dimension, 8"),
        ({"llama.rope.freq_base": float("nan")}, r"freq_base is nan"),
        ({"llama.vocab_size": 5}, "no token embedding with llama.vocab_size rows"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken', but axzoo converts only 'deepseek-r1-qwen', "),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer 't5', but axzoo converts only 'gpt2' and 'llama'"),
        ({"tokenizer.ggml.model": "llama"}, "scores is missing"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [1.0, 2.0]}, "must have a finite score for each"),
        (
            {"tokenizer.ggml.tokens": ["a" * 600], "tokenizer.ggml.token_type": [1], **SCORED},
            "a token of more than 512 characters",
        ),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token is 'yes', but must be true or false"),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix"),
        ({"tokenizer.ggml.merges": None}, "merges is missing"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "not a pair"),
        ({"tokenizer.ggml.merges": ["zz zz"]}, "do not fit its tokens"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.merges": ["a a"]}, "has a duplicate token"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "values that are not strings"),
        ({"tokenizer.ggml.token_type": [1, 3]}, "2 token types"),
        (
            {
                "tokenizer.ggml.tokens": ["a", "b", "ab", *map(str, range(996))],
                "tokenizer.ggml.token_type": [1] * 999,
                "tokenizer.ggml.merges": ["a b"],
            },
            "more tokens than the",
        ),
        ({"tokenizer.ggml.eos_token_id": 1 << 20}, "eos_token has index 1048576"),
    ],
)
def test_files_that_cannot_be_converted(tiny: Tiny, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        converted(tiny, tmp_path, changes=changes)
    assert list((tmp_path / "checkpoint").iterdir()) == []


DECIMALS = ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor")
WIDE = [1e300, -1e300, 1e39, 1e31, 1e-31, 1e-46, 1e-300, 5e-324, float("inf"), float("nan"), 0.0, -1.0]
NARROW = [float("inf"), float("-inf"), float("nan"), 0.0, -1.0, 1e-40]


@pytest.mark.parametrize(
    "value", [*map(np.float64, WIDE), *NARROW], ids=lambda value: f"{type(value).__name__} {value}"
)
@pytest.mark.parametrize("key", DECIMALS)
def test_numbers_out_of_range(tiny: Tiny, tmp_path: Path, key: str, value: float) -> None:
    """A number may be float64, whose range is larger than that of the float32 in which the model computes."""
    changes = {f"llama.{key}": value, **({"llama.rope.scaling.type": "linear"} if "scaling" in key else {})}
    with pytest.raises(AxzooError) as caught:
        converted(tiny, tmp_path, changes=changes)
    message = str(caught.value)
    assert re.search(
        rf"tiny\.gguf: llama\.{re.escape(key)} is .*, but must be (a positive number|from 1e-30 to )", message
    )
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_a_number_as_float64(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"llama.rope.freq_base": np.float64(5000), "llama.attention.layer_norm_rms_epsilon": np.float64(1e-5)}
    for name in ("as32", "as64"):
        (tmp_path / name).mkdir()
    plain, wide = converted(tiny, tmp_path / "as32"), converted(tiny, tmp_path / "as64", changes=changes)
    assert read_json(wide / "config.json") == read_json(plain / "config.json")


INTEGERS = ("block_count", "context_length", "feed_forward_length", "attention.head_count_kv", "vocab_size")


@pytest.mark.parametrize("value", [0, 1 << 31, 1.5, np.float64(2), "2", [2]], ids=repr)
@pytest.mark.parametrize("key", INTEGERS)
def test_integers_out_of_range(tiny: Tiny, tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(AxzooError, match=rf"tiny\.gguf: llama\.{key} is .*, but must be a positive integer"):
        converted(tiny, tmp_path, changes={f"llama.{key}": value})
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_a_tensor_llama_does_not_have(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"blk\.0\.attn_q\.bias, which a plain llama does not have"):
        converted(tiny, tmp_path, extra={"blk.0.attn_q.bias": np.ones(32, np.float32)})


@pytest.mark.parametrize(
    ("factors", "message"),
    [([1.0] * 3, r"has shape \[3\], but half the head dimension is 4"), ([1.0, 0.0, 1.0, 1.0], "positive values")],
)
def test_rope_factors_that_do_not_fit(tiny: Tiny, tmp_path: Path, factors: list[float], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        converted(tiny, tmp_path, extra={"rope_freqs.weight": np.array(factors, np.float32)})


def _logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


def test_rope_factors_are_those_of_llama_3(tiny: Tiny, tmp_path: Path) -> None:
    """llama.cpp's converter writes what the frequencies of rope_type llama3 are divided by."""
    import copy

    from transformers import LlamaForCausalLM

    config = copy.deepcopy(tiny.model.config)
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    original = LlamaForCausalLM(config).float().eval()
    original.load_state_dict(tiny.model.state_dict())
    plain = 5000.0 ** -(np.arange(0, 8, 2) / 8)
    factors = (plain / original.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert factors[0] == 1 and factors[-1] == 8
    folder = converted(tiny, tmp_path, extra={"rope_freqs.weight": factors})
    ids = torch.randint(0, config.vocab_size, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, unscaled = original(ids).logits, tiny.model(ids).logits
    assert (expected - unscaled).abs().max() > 0.1
    torch.testing.assert_close(_logits(folder, ids), expected, rtol=0, atol=2e-4)
    view = ConfigView(json.loads((folder / "config.json").read_text()), folder / "config.json")
    inv_freq, attention = frequencies(decoder_spec(view).layer.rope, 128)
    assert attention == 1.0
    np.testing.assert_allclose(inv_freq, plain / factors, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({"llama.rope.scaling.type": "none"}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.finetuned": False}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
    ],
)
def test_rope_scaling(tiny: Tiny, tmp_path: Path, changes: dict[str, Any], scaling: Any) -> None:
    folder = converted(tiny, tmp_path, changes=changes)
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == scaling


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({"tokenizer.ggml.eot_token_id": 1}, [2, 1]),
        ({"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.eom_token_id": 0}, [2, 0]),
        ({"tokenizer.ggml.eot_token_id": 2}, 2),
        ({"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.eom_token_id": 3}, 3),
    ],
)
def test_the_ends_of_turns_and_messages_end_an_answer(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], ends: Any
) -> None:
    folder = converted(tiny, tmp_path, changes=changes)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == ends
    assert set(load_tokenizer(folder).eos_token_ids) == {*(ends if isinstance(ends, list) else [ends]), 2}


def test_a_file_without_a_tokenizer_becomes_a_checkpoint_without_one(tiny: Tiny, tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    output.mkdir()
    convert(tiny.write(tmp_path / "with.gguf"), output)
    changes = {"tokenizer.ggml.model": "none", "tokenizer.ggml.eos_token_id": 7}
    written = convert(tiny.write(tmp_path / "without.gguf", changes), output)
    assert written == sorted(["config.json", "generation_config.json", "model.safetensors"])
    assert sorted(path.name for path in output.iterdir()) == written  # those of the other file are gone
    assert find_tokenizer(output) is None
    assert json.loads((output / "config.json").read_text())["eos_token_id"] == 7


def test_a_qwen2_is_converted(tiny: Tiny, tmp_path: Path) -> None:
    """llama.cpp keeps the rows of q and k in their order, and q, k and v have biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    known = tiny.model.config
    torch.manual_seed(2)
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=known.vocab_size,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    model = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("bias"):
                values.normal_()
    folder = converted(replace(tiny, model=model), tmp_path, changes=QWEN2)
    ids = torch.randint(0, config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits
    torch.testing.assert_close(_logits(folder, ids), expected, rtol=0, atol=0)
    read_spec(folder, "qwen2", 2, ())


QWEN2 = {"general.architecture": "qwen2", "tokenizer.ggml.pre": "qwen2"}
