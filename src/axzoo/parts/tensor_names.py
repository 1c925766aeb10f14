"""Which tensors of a checkpoint are the model's, under which names, and why the others are refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from axzoo.core.errors import AxzooError

_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Words that torch.compile, data parallelism and activation checkpointing insert into names."""

_DERIVED = re.compile(
    r"(.*\.)?(rotary(_pos)?_emb\.((original_|long_|short_)?inv_freq|(cos|sin)(_cached)?)|rope\.freqs|freqs_(cis|cos|sin)"
    r"|self_attn\.masked_bias|causal_mask|position_ids)"
)
"""Tables that follow from the config: rotary embeddings, masks, positions. transformers passes over them too."""

_HEADS = re.compile(r"(v_head|value_head|reward_head|score|classifier)\..+")
"""Heads of reward models and classifiers. They read the hidden states and do not change the logits of tokens."""

_ADAPTER = re.compile(r".*(\.lora_|\.base_layer\.|\.ia3_|prompt_encoder\.|lora_embedding_).*")
_QUANTIZED = re.compile(r".*\.(qweight|weight_scale(_inv)?|weight_packed|SCB|absmax|quant_map|quant_state\..+|scales)")
MAX_LISTED = 5


def model_names(stored: Iterable[str], needed: Collection[str], embedding: str) -> dict[str, str]:
    """The stored name of each tensor by the name that the model has for it.

    Words that wrappers insert are removed. If the table `embedding` is stored with another prefix, or without its first
    word (such as `model.`), all names that share this difference are changed. Raises AxzooError if two tensors get the
    same name.
    """
    plain = _unique((".".join(word for word in name.split(".") if word not in _WRAPPERS), name) for name in stored)
    if embedding in plain:
        return plain
    base, _, bare = embedding.partition(".")
    inside = {name.split(".")[1] for name in needed if name.startswith(f"{base}.")}

    def with_base(name: str) -> str:
        return f"{base}.{name}" if name.partition(".")[0] in inside else name

    for end, rename in ((embedding, str), (bare, with_base)):
        prefixes = [name.removesuffix(end) for name in plain if name == end or name.endswith(f".{end}")]
        if len(prefixes) == 1:
            prefix = prefixes[0]
            changed = ((name.removeprefix(prefix), name) for name in plain)
            return _unique((rename(name) if old.startswith(prefix) else old, plain[old]) for name, old in changed)
    return plain


def _unique(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, stored in names:
        if name in found:
            raise AxzooError(f"the checkpoint has both {found[name]} and {stored}, two versions of {name}: remove one")
        found[name] = stored
    return found


def adds_nothing(name: str, family: str | None) -> bool:
    """Whether a tensor with this name, which the model does not need, cannot change its logits.

    `family` is a regular expression for the tensors that this holds for in one family only.
    """
    return bool(_DERIVED.fullmatch(name) or _HEADS.fullmatch(name) or (family and re.fullmatch(family, name)))


def without_ignored(extra: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names in `extra` that match no pattern (`*` stands for any text) of the user.

    Raises AxzooError if a pattern matches none of them.
    """
    names = list(extra)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise AxzooError(
                f"ignore_tensors: {pattern!r} matches no tensor of the checkpoint that could be ignored, because the "
                f"build needs those that it matches, or there are none: remove it"
            )
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def problem(missing: Sequence[str], extra: Sequence[str], stored: Collection[str], tied_head: str | None) -> str:
    """What is wrong with the tensors, and what to do, as the rest of a sentence that starts with "the checkpoint".

    `tied_head` is the lm_head's name if the head would be the embedding with tie_word_embeddings, otherwise None.
    """
    problems = [f"is missing {_listed(missing)}"] if missing else []
    problems += [f"has unexpected {_listed(extra)}"] if extra else []
    return f"{' and '.join(problems)}: {_advice(missing, extra, stored, tied_head)}"


def _advice(missing: Sequence[str], extra: Sequence[str], stored: Collection[str], tied_head: str | None) -> str:
    if any(map(_ADAPTER.fullmatch, extra)):
        return "it is an adapter that is not merged: merge it into its model (merge_and_unload of peft) and save that"
    if any(map(_QUANTIZED.fullmatch, extra)):
        return "the weights are quantized in a way that axzoo does not read: use the unquantized checkpoint"
    heads = sorted({name.partition(".")[0] for name in stored if _HEADS.fullmatch(name)})
    if heads and missing and all("head" in name or "output_layer" in name for name in missing):
        return f"it is a reward model or classifier with the head {heads[0]}, not a language model"
    if tied_head is not None and list(missing) == [tied_head]:
        return (
            f"if its head is the embedding, pass a model_config with {TIED}; otherwise the file with {tied_head} is "
            f"missing"
        )
    if extra and not missing:
        names = " ".join(ignore_patterns(extra))
        return (
            f"check that config.json belongs to these weights. If the model does not need them, list them under "
            f"ignore_tensors in the matrix or pass --ignore_tensors {names}"
        )
    return "check that config.json belongs to these weights"


TIED = '{"tie_word_embeddings": true}'
UNTIED = '{"tie_word_embeddings": false}'


def ignore_patterns(names: Iterable[str]) -> list[str]:
    """The values of ignore_tensors that match `names`, each in quotes if a shell would expand it.

    If there are many names, their numbers become `*`, as do characters that a value cannot have.
    """
    found = [re.sub(r"^-|[^A-Za-z0-9_.-]+", "*", name) for name in names]
    if len(found) > MAX_LISTED:
        found = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in found))
    if len(found) > MAX_LISTED:
        found = list(dict.fromkeys(f"{name.partition('.')[0]}.*" for name in found))
    return [f"'{name}'" if "*" in name else name for name in found]


def tied_contradiction(head: str, embedding: str) -> str:
    """What to do if the head differs from the embedding although they are tied."""
    return (
        f"{head} differs from {embedding}: if the model has its own lm_head, pass a model_config with {UNTIED}; if its "
        f"head is the embedding, list {head} under ignore_tensors in the matrix or pass --ignore_tensors {head}"
    )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(names[:MAX_LISTED]) + rest


def renamed(names: Mapping[str, str]) -> str | None:
    """An example of a tensor whose name in the file differs from the model's; None if there is none."""
    return next((f"{stored} is {name}" for name, stored in names.items() if name != stored), None)
