import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gguf import Tiny
from transformers import AutoModelForCausalLM

from axzoo.checkpoint.gguf.conversion import FILES, convert
from axzoo.core.errors import AxzooError
from axzoo.model.config_view import ConfigView
from axzoo.model.families.llama import decoder_spec


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
        ({"general.architecture": "qwen2"}, "architecture 'qwen2'"),
        ({"llama.rope.scaling.type": "yarn"}, r"sets llama\.rope\.scaling\.type"),
        ({"llama.expert_count": 8}, r"sets llama\.expert_count"),
        ({"llama.block_count": None}, r"llama\.block_count is missing"),
        ({"llama.attention.head_count_kv": [1, 2]}, r"head_count_kv is \[1, 2\]"),
        ({"llama.rope.dimension_count": 4}, r"rope\.dimension_count must equal the head dimension, 8"),
        ({"llama.rope.freq_base": float("nan")}, r"freq_base is nan"),
        ({"llama.vocab_size": 5}, "no token embedding with llama.vocab_size rows"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "pre-tokenizer 'llama-bpe'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer 'llama'"),
        ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token"),
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


def test_a_tensor_llama_does_not_have(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match=r"rope_freqs\.weight"):
        converted(tiny, tmp_path, extra={"rope_freqs.weight": np.ones(4, np.float32)})
