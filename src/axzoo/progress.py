"""What long work looks like: one bar per stage, and the Config(...) block of a model."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from axzoo.spec import DecoderSpec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def open_console(stream: TextIO, *, color: bool = True) -> Console:
    """A console that draws and colours only on a real terminal, whatever FORCE_COLOR says: piped output stays plain."""
    from rich.console import Console

    drawable = stream.isatty() and os.environ.get("TERM") != "dumb"
    return Console(file=stream, force_terminal=drawable, no_color=None if color else True, highlight=False)


def stage_bars(console: Console) -> Progress:
    """Bars of the form "building llm decode layers ━━━ 24/24 0:05:03"; on anything but a terminal they draw nothing.

    The caller starts and stops them. Lines printed through `console` meanwhile appear above the bars.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}  ", markup=False),
        BarColumn(bar_width=None, finished_style="green"),  # rich's own finished style is grey on 16 colours
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        expand=True,
        refresh_per_second=4,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # a pipe on stdout must keep its bytes
    )


def format_elapsed(seconds: float) -> str:
    """Seconds as H:MM:SS, as the bars show them."""
    return str(timedelta(seconds=int(seconds)))


def format_config(model_name: str, spec: DecoderSpec) -> str:
    """Renders a model as the block `llm_build` prints: Config(model_name='...', ..., hidden_act='silu').

    MiniCPM's scale_depth, scale_emb and dim_model_base, which the document shows of every model, stand where they scale
    something; hidden_act_param, which nothing reads, is left out.
    """
    layer = spec.layer
    scales = {
        "scale_depth": (layer.residual_scale, spec.num_hidden_layers**0.5),
        "scale_emb": (spec.embedding_scale, 1),
        "dim_model_base": (spec.post.logit_scale, layer.hidden_size),
    }
    values: dict[str, object] = {
        "model_name": model_name,
        "model_type": spec.model_type,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": layer.num_attention_heads,
        "num_key_value_heads": layer.num_key_value_heads,
        "hidden_size": layer.hidden_size,
        "intermediate_size": layer.intermediate_size,
        "vocab_size": spec.vocab_size,
        "rope_theta": layer.rope.theta,
        "max_position_embeddings": layer.max_position_embeddings,
        "rope_partial_factor": layer.rope.rotary_dim / layer.head_dim,
        "rms_norm_eps": layer.norm.eps,
        "norm_type": layer.norm.kind,
        "hidden_act": layer.hidden_act,
        **{name: _plain(scale * unit) for name, (scale, unit) in scales.items() if scale != 1},
    }
    return "Config(\n" + ",\n".join(f"    {name}={value!r}" for name, value in values.items()) + "\n)"


def _plain(number: float) -> float:
    """As a config says it: 1.4, and 12 for 12.0, whatever the division before left in the last digits."""
    rounded = round(number, 6)
    return int(rounded) if rounded.is_integer() else rounded
