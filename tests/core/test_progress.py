"""The Config(...) block is the documented one; progress bars are drawn only on a terminal."""

import io
import re
from dataclasses import replace

import pytest

from axzoo.core.console import format_elapsed, open_console, stage_bars
from axzoo.model.reading import format_config
from axzoo.model.spec import DecoderSpec, LayerSpec, NormSpec, PostSpec, RopeSpec

# What llm_build prints for Qwen2-0.5B-Instruct, except for hidden_act_param, scale_depth, scale_emb and dim_model_base,
# which Qwen2 does not use.
DOCUMENTED = """\
Config(
    model_name='Qwen2-0.5B-Instruct',
    model_type='qwen2',
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    hidden_size=896,
    intermediate_size=4864,
    vocab_size=151936,
    rope_theta=1000000.0,
    max_position_embeddings=32768,
    rope_partial_factor=1.0,
    rms_norm_eps=1e-06,
    norm_type='rms_norm',
    hidden_act='silu'
)"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def qwen2() -> DecoderSpec:
    norm = NormSpec("rms_norm", 1e-06)
    layer = LayerSpec(
        hidden_size=896,
        intermediate_size=4864,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        norm=norm,
        rope=RopeSpec(theta=1000000.0, rotary_dim=64),
        max_position_embeddings=32768,
        qkv_bias=True,
    )
    return DecoderSpec(
        model_type="qwen2",
        num_hidden_layers=24,
        vocab_size=151936,
        tie_word_embeddings=True,
        layer=layer,
        post=PostSpec(hidden_size=896, vocab_size=151936, norm=norm),
    )


def test_config_block_is_as_documented(qwen2):
    assert format_config("Qwen2-0.5B-Instruct", qwen2) == DOCUMENTED


def test_config_block_shows_scales_other_than_1(qwen2):
    """The documented MiniCPM-V 2.0: 40 layers, hidden_size 2304."""
    layer = replace(qwen2.layer, hidden_size=2304, residual_scale=1.4 / 40**0.5)
    post = replace(qwen2.post, hidden_size=2304, logit_scale=256 / 2304)
    minicpm = replace(qwen2, num_hidden_layers=40, layer=layer, post=post, embedding_scale=12.0)
    block = format_config("MiniCPM-V-2", minicpm)
    assert block.endswith("    scale_depth=1.4,\n    scale_emb=12,\n    dim_model_base=256\n)")


def test_config_block_escapes_hostile_names(qwen2):
    block = format_config("evil\x1b[2J\n'", qwen2)
    assert "\x1b" not in block
    assert len(block.splitlines()) == 16


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00:00"), (303.9, "0:05:03"), (90000, "1 day, 1:00:00")])
def test_elapsed(seconds, shown):
    assert format_elapsed(seconds) == shown


def draw_stage(stream):
    bars = stage_bars(open_console(stream))
    bars.start()
    bars.update(bars.add_task("building llm decode layers", total=24), completed=24)
    bars.stop()
    return stream.getvalue()


def test_the_bar_looks_as_documented(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", draw_stage(Terminal()))
    assert re.search(r"building llm decode layers   ━+ 24/24 0:00:00", shown)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_drawn_in_a_pipe_or_on_a_dumb_terminal(monkeypatch, stream):
    monkeypatch.setenv("TERM", "dumb")
    assert draw_stage(stream()) == ""
