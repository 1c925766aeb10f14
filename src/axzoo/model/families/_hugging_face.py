"""Tensor names that most Hugging Face decoders share."""

from __future__ import annotations

from axzoo.model.spec import DecoderSpec, TensorRef


def linear(name: str, shape: tuple[int, int], bias: bool, rows: tuple[int, int] | None = None) -> dict[str, TensorRef]:
    """A linear layer's tensors by "weight" and, if it has one, "bias"; `rows` selects its slice of a fused tensor."""
    tensors = {"weight": TensorRef(f"{name}.weight", shape, rows)}
    return tensors | ({"bias": TensorRef(f"{name}.bias", shape[:1], rows)} if bias else {})


def roles(**linears: dict[str, TensorRef]) -> dict[str, TensorRef]:
    """Tensors by role: q_proj={"weight": ...} becomes {"q_proj.weight": ...}."""
    return {f"{role}.{part}": ref for role, tensors in linears.items() for part, ref in tensors.items()}


def fused(name: str, sizes: dict[str, int], columns: int, bias: bool) -> dict[str, TensorRef]:
    """The tensors, by role, of linear layers whose rows are stacked in one tensor in the order of `sizes`."""
    total = sum(sizes.values())
    tensors: dict[str, TensorRef] = {}
    start = 0
    for role, size in sizes.items():
        tensors |= roles(**{role: linear(name, (total, columns), bias, (start, start + size))})
        start += size
    return tensors


def llama_layer(spec: DecoderSpec, layer: int, prefix: str = "model") -> dict[str, TensorRef]:
    """The tensors of a Llama layer: separate projections, gated MLP, two norms without bias."""
    part, name = spec.layer, f"{prefix}.layers.{layer}"
    hidden, inner = part.hidden_size, part.intermediate_size
    return {
        "input_norm.weight": TensorRef(f"{name}.input_layernorm.weight", (hidden,)),
        "mlp_norm.weight": TensorRef(f"{name}.post_attention_layernorm.weight", (hidden,)),
        **roles(
            q_proj=linear(f"{name}.self_attn.q_proj", (part.q_size, hidden), part.qkv_bias),
            k_proj=linear(f"{name}.self_attn.k_proj", (part.kv_size, hidden), part.qkv_bias),
            v_proj=linear(f"{name}.self_attn.v_proj", (part.kv_size, hidden), part.qkv_bias),
            o_proj=linear(f"{name}.self_attn.o_proj", (hidden, part.q_size), part.o_bias),
            gate_proj=linear(f"{name}.mlp.gate_proj", (inner, hidden), part.mlp_bias),
            up_proj=linear(f"{name}.mlp.up_proj", (inner, hidden), part.mlp_bias),
            down_proj=linear(f"{name}.mlp.down_proj", (hidden, inner), part.mlp_bias),
        ),
    }


def llama_post(spec: DecoderSpec, prefix: str = "") -> dict[str, TensorRef]:
    """The final norm and lm_head, which is the embedding table if they are tied."""
    head = f"{prefix}model.embed_tokens" if spec.tie_word_embeddings else f"{prefix}lm_head"
    return {
        "norm.weight": TensorRef(f"{prefix}model.norm.weight", (spec.layer.hidden_size,)),
        **roles(lm_head=linear(head, (spec.vocab_size, spec.layer.hidden_size), False)),
    }


def embed_tokens(spec: DecoderSpec, prefix: str = "") -> TensorRef:
    """The embedding table."""
    return TensorRef(f"{prefix}model.embed_tokens.weight", (spec.vocab_size, spec.layer.hidden_size))
