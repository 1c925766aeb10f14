"""Sizes of a model and of its build: weights, KV cache and I/O buffers on the chip, files, download.

1 MB is 10^6 bytes. Snakemake imports this module while planning, so it must not import numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from axzoo.bundle.boards import GUARD_FLOOR_MIB
from axzoo.core.errors import AxzooError
from axzoo.model.spec import MAX_LAYERS
from axzoo.parts.kind import ModelOutline
from axzoo.parts.kinds import KINDS, kind_of
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from axzoo.model.spec import DecoderSpec, TensorRef

Sizes = Mapping[str, int]
"""The `sizes` of a matrix entry: parameter counts by part kind, and widths."""

_LIMITS = {"num_hidden_layers": MAX_LAYERS, "hidden_size": 1 << 17, "intermediate_size": 1 << 19, "vocab_size": 1 << 23}
MAX_PARAMETERS = 10**13
"""Beyond these a config is a mistake: each is several times that of the largest published models."""


@dataclass(frozen=True)
class Anatomy:
    """What a forecast has to know of a model.

    `layer`, `post`, `embedding` and `vision` are parameter counts: of one decoder layer, of final norm and lm_head, of
    the embedding table, of the vision model (0: none). `kv_width` is the width of a row of the K or V cache, `q_width`
    that of a token's queries, and `layer_rows` the number of rows of all matrices of a layer. `checkpoint` is the
    number of weights in the checkpoint, where a tied lm_head is stored only once. `assumed` is true if widths were
    estimated, because the matrix does not give them.
    """

    model_type: str
    num_hidden_layers: int
    layer: int
    post: int
    embedding: int
    kv_width: int
    hidden_size: int
    q_width: int
    checkpoint: int
    vision: int = 0
    layer_rows: int = 0
    rotary_dim: int = 0
    assumed: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """The same numbers under the keys of a matrix entry's `sizes`."""
        widths = {"kv_width": self.kv_width, "hidden_size": self.hidden_size}
        return {"layer": self.layer, "post": self.post, **({"vision": self.vision} if self.vision else {}), **widths}

    @property
    def on_device(self) -> int:
        """The number of weights that the board's NPU reads or holds."""
        return self.num_hidden_layers * self.layer + self.post + self.vision


def anatomy_of_spec(spec: DecoderSpec) -> Anatomy:
    """The anatomy of a model whose config.json was read.

    Raises AxzooError for sizes that no model for a board has.
    """
    from axzoo.model.families import load_family

    family = load_family(spec.model_type)
    refs = {name: kind_of(name).tensors(family, spec, 0) for name in ("layer", "post")}
    for key, limit in _LIMITS.items():
        value = int(getattr(spec if hasattr(spec, key) else spec.layer, key))
        if value > limit:
            raise AxzooError(f"{key} {value} is not plausible: at most {limit} are")
    layer, post = (_parameters(refs[name].values()) for name in ("layer", "post"))
    embedding = spec.vocab_size * spec.layer.hidden_size
    vision = 0 if spec.vision is None else _parameters(kind_of("vision").tensors(family, spec, None).values())
    stored = spec.num_hidden_layers * layer + post + vision + (0 if spec.tie_word_embeddings else embedding)
    if stored > MAX_PARAMETERS:
        raise AxzooError(
            f"the model has {stored:.1e} parameters, which is not plausible: check hidden_size {spec.layer.hidden_size}"
            f", intermediate_size {spec.layer.intermediate_size} and vocab_size {spec.vocab_size}"
        )
    return Anatomy(
        model_type=spec.model_type,
        num_hidden_layers=spec.num_hidden_layers,
        layer=layer,
        post=post,
        embedding=embedding,
        kv_width=spec.layer.kv_size,
        hidden_size=spec.layer.hidden_size,
        q_width=spec.layer.q_size,
        checkpoint=stored,
        vision=vision,
        layer_rows=sum(_shape(ref)[0] for ref in refs["layer"].values() if len(ref.shape) == 2),
        rotary_dim=spec.layer.rope.rotary_dim,
    )


def _parameters(tensors: Iterable[TensorRef]) -> int:
    return sum(math.prod(_shape(ref)) for ref in tensors)


def _shape(ref: TensorRef) -> tuple[int, ...]:
    """A tensor of which a part takes only some rows counts with these."""
    return ref.shape if ref.rows is None else (ref.rows[1] - ref.rows[0], *ref.shape[1:])


def anatomy_of_sizes(model: ModelOutline, sizes: Sizes) -> Anatomy:
    """The anatomy of a matrix entry with `sizes`.

    Without `hidden_size` and `intermediate_size`, the widths are those of a typical layer with as many parameters. The
    lm_head is taken as tied, as `sizes` do not say it.
    """
    layer, kv_width = sizes["layer"], sizes["kv_width"]
    known = "hidden_size" in sizes and "intermediate_size" in sizes
    hidden = sizes.get("hidden_size") or max(math.isqrt(layer // 12), 1)
    inner = sizes.get("intermediate_size") or 3 * hidden
    q_width = _q_width(layer, hidden, inner, kv_width) if known else hidden
    vision = sum(kind.parameters(sizes) for kind in KINDS if kind.name == "vision" and kind.ids(model))
    return Anatomy(
        model_type=model.model_type,
        num_hidden_layers=model.num_hidden_layers,
        layer=layer,
        post=sizes["post"],
        embedding=sizes["post"],
        kv_width=kv_width,
        hidden_size=hidden,
        q_width=q_width,
        checkpoint=model.num_hidden_layers * layer + sizes["post"] + vision,
        vision=vision,
        layer_rows=q_width + 2 * kv_width + 2 * hidden + 2 * inner,
        rotary_dim=128 if kv_width % 128 == 0 else 64,
        assumed=not known,
    )


def _q_width(layer: int, hidden: int, inner: int, kv_width: int) -> int:
    """The width of the queries, from what q_proj and o_proj of a layer have left; the MLP has three matrices, or two if
    three would leave too little."""
    for matrices in (3, 2):
        rest = layer - matrices * hidden * inner - 2 * hidden * kv_width
        if rest >= hidden * hidden:
            return round(rest / (2 * hidden) / 32) * 32
    return hidden


@dataclass(frozen=True)
class DeviceMemory:
    """The memory that a build needs on its chip, in MB (10^6 bytes)."""

    weights_mb: int
    kv_cache_mb: int

    @property
    def total_mb(self) -> int:
        return self.weights_mb + self.kv_cache_mb


def device_memory(recipe: Recipe, model: ModelOutline, sizes: Sizes) -> DeviceMemory:
    """The memory of weights and KV cache. The embedding does not count, because it stays in host memory.

    For each cached token and layer, K and V have `kv_width` = num_key_value_heads * head_dim values each.
    """
    weights = sum(
        FORMATS[kind.weight_type(recipe)].bytes_on_device * kind.parameters(sizes) * len(kind.ids(model))
        for kind in KINDS
        if kind.on_device and kind.is_built(recipe)
    )
    cached = 2 * model.num_hidden_layers * recipe.kv_cache_len * sizes["kv_width"]
    cache = FORMATS[recipe.hidden_state_type].bytes_stored * cached
    return DeviceMemory(weights_mb=round(weights / 1e6), kv_cache_mb=round(cache / 1e6))


def io_mb(anatomy: Anatomy, recipe: Recipe) -> float:
    """The memory of I/O buffers: the host program gives every tensor of every shape group of every layer its own
    buffer, except that all groups of a layer share the KV cache, which `device_memory` counts."""
    state = FORMATS[recipe.hidden_state_type].bytes_stored
    groups = [(1, recipe.kv_cache_len)]
    if recipe.prefill_len:
        groups += [(recipe.prefill_len, past) for past in (0, *recipe.last_kv_cache_len)]
    rows = 2 * anatomy.hidden_size + 2 * anatomy.kv_width  # input and output, new K and V
    buffers = sum(tokens * (4 + state * (rows + past + tokens)) for tokens, past in groups)
    logits = state * anatomy.embedding / anatomy.hidden_size
    return (anatomy.num_hidden_layers * buffers + logits) / 1e6


GUARD_TAIL = 0.15
"""axllm counts the post layer's file 1.15 times while it loads."""


def guard_mb(recipe: Recipe, anatomy: Anatomy) -> float:
    """The memory that the host program's guard keeps free."""
    floor = GUARD_FLOOR_MIB * (1 << 20) / 1e6
    return floor + GUARD_TAIL * FORMATS[recipe.post_weight_type].bytes_on_device * anatomy.post / 1e6


LAYER_GRAPH_BYTES, POST_GRAPH_BYTES, GROUP_BYTES = 5700, 1000, 330
"""The parts of a file that are neither weights, scales nor rotary tables: the graph, and the table of shape groups."""


def flash_bytes(recipe: Recipe, anatomy: Anatomy) -> int:
    """The size of a bundle of the host backend, without the tokenizer: layers, post layer, vision model, embedding."""
    layer, post = FORMATS[recipe.weight_type], FORMATS[recipe.post_weight_type]
    scales = anatomy.layer / recipe.weight_group_size if recipe.weight_group_size else anatomy.layer_rows
    tables = 4 * anatomy.rotary_dim * recipe.positions
    graph = LAYER_GRAPH_BYTES + GROUP_BYTES * (1 + bool(recipe.prefill_len) + len(recipe.last_kv_cache_len))
    one = layer.bytes_stored * anatomy.layer + 4 * scales * layer.has_scales + tables + graph
    vocab = anatomy.embedding / anatomy.hidden_size
    head = post.bytes_stored * anatomy.post + 4 * vocab * post.has_scales + POST_GRAPH_BYTES
    vision = layer.bytes_stored * anatomy.vision
    return round(anatomy.num_hidden_layers * one + head + vision + embedding_bytes(anatomy))


def embedding_bytes(anatomy: Anatomy) -> int:
    """The size of the embedding file, bf16."""
    return 2 * anatomy.embedding


_WITH_SCALES = 1.1
"""Size of stored weights with scales and tables, relative to the weights alone."""


def stored_bytes(recipe: Recipe, model: ModelOutline, sizes: Sizes) -> int:
    """The size of all compiled files on the device, without the embedding."""
    return round(
        sum(
            _WITH_SCALES
            * FORMATS[kind.weight_type(recipe)].bytes_stored
            * kind.parameters(sizes)
            * len(kind.ids(model))
            for kind in KINDS
            if kind.on_device and kind.is_built(recipe)
        )
    )


def parameters(model: ModelOutline, recipe: Recipe, sizes: Sizes) -> int:
    """The number of parameters of all parts on the device."""
    built = (kind for kind in KINDS if kind.on_device and kind.is_built(recipe))
    return sum(kind.parameters(sizes) * len(kind.ids(model)) for kind in built)
