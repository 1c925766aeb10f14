"""Proof that a run of the compiler succeeded: its exit status proves nothing. Also what its errors mean."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from axzoo.backends.host.container import METADATA_KEY
from axzoo.backends.host.outline import DeclaredTensor, Outline, read_outline
from axzoo.backends.pulsar2.running import DONE, RunResult
from axzoo.backends.pulsar2.settings import Settings
from axzoo.backends.pulsar2.vendor_file import NODE_TYPE, TABLE, numbered, program_name
from axzoo.core.errors import AxzooError
from axzoo.model.spec import DecoderSpec
from axzoo.parts.groups import ShapeGroup, TensorSpec
from axzoo.parts.kind import PartKind

_BYTES_PER_WEIGHT = {"s4": (0.5, 0.75), "s8": (1.0, 1.5), "fp16": (2, 5), "bf16": (2, 5), "fp32": (4, 5)}
_FP8 = (1, 5)
"""The fewest and the most bytes per weight in a table, with its scales. Float types take four bytes in version 7."""

_TABLE_SLACK = 64 << 20
"""Bytes that a table may have besides the weights: norms, rotary tables and constants."""

_MAX_CONFIG = 1 << 16
_CONFIG = re.compile(r"(?<![\w.])Config\(")


def is_whole(path: Path) -> bool:
    """Whether a file exists and can be read to its end."""
    try:
        read_outline(path)
    except (AxzooError, OSError):
        return False
    return True


def is_host_file(path: Path) -> bool:
    """Whether axzoo's own compiler wrote the file, as `axzoo llm_build` does in the place of the vendor's tool."""
    return METADATA_KEY in read_outline(path).metadata


def contradictions(
    path: Path,
    kind: PartKind,
    groups: Sequence[ShapeGroup],
    weight_type: str,
    parameters: int | None,
    about: Mapping[str, Any],
) -> Iterator[str]:
    """Yields what a file of the compiler lacks or has too much of: groups, tensors, dtypes and size of the table.

    `parameters` is the number of weights in its matrices, if known. A file of axzoo's own compiler is checked as such.
    """
    try:
        outline = read_outline(path)
    except AxzooError as error:
        yield str(error)
        return
    if METADATA_KEY in outline.metadata:
        from axzoo.backends.host.inspection import contradictions as of_host_file

        yield from of_host_file(path, kind.name, tuple(groups), about)
        return
    if outline.operators != {NODE_TYPE: len(groups)}:
        found = ", ".join(f"{count} x {name}" for name, count in list(outline.operators.items())[:3]) or "nothing"
        yield f"{path.name} has {found}, and not {len(groups)} x {NODE_TYPE}, one for each shape group"
    yield from _of_tensors(path.name, outline, len(groups))
    for label, declared, wanted in (
        ("inputs", outline.inputs, [_numbered(t, i) for i, group in enumerate(groups) for t in group.inputs]),
        ("outputs", outline.outputs, [_numbered(t, i) for i, group in enumerate(groups) for t in group.outputs]),
    ):
        if Counter(declared) != Counter(wanted):
            wrong = next(iter(set(declared) ^ set(wanted)), None)
            yield f"{path.name} has other {label} than its {len(groups)} shape groups, such as {_shown(wrong)}"
    tables = [tensor.bytes for tensor in outline.tensors if tensor.name == TABLE]
    if parameters is not None and len(tables) == 1:
        least, most = _BYTES_PER_WEIGHT.get(weight_type, _FP8)
        least /= 1 if kind.name == "layer" else 2  # rows of unused tokens are equal, and equal blocks are stored once
        low, high = int(parameters * least), int(parameters * most) + _TABLE_SLACK
        if not low <= tables[0] <= high:
            yield (
                f"{path.name} has {tables[0]} bytes of {TABLE}, and {parameters} weights of type {weight_type} take "
                f"{low} to {high}"
            )


def _of_tensors(name: str, outline: Outline, groups: int) -> Iterator[str]:
    wanted = {TABLE, *(program_name(group) for group in range(groups))}
    found = Counter(tensor.name for tensor in outline.tensors)
    if lacking := sorted(wanted - found.keys()):
        yield f"{name} has no {lacking[0]}"
    if extra := sorted(found.keys() - wanted):
        yield f"{name} has an unexpected tensor {extra[0]!r:.80}"
    for tensor in outline.tensors:
        if tensor.dtype != "uint8" or tensor.external or tensor.shape != (tensor.bytes,) or found[tensor.name] > 1:
            yield f"{name} has a damaged tensor {tensor.name!r:.80}: {tensor.bytes} bytes, shape {list(tensor.shape)}"
            return
        if not tensor.bytes:
            yield f"{name} has an empty tensor {tensor.name!r:.80}"


def _numbered(tensor: TensorSpec, group: int) -> DeclaredTensor:
    """The tensor as the file declares it."""
    return DeclaredTensor(numbered(tensor.name, group), tensor.dtype, tensor.shape)


def _shown(tensor: DeclaredTensor | None) -> str:
    return "a repeated one" if tensor is None else f"{tensor.name!r:.80} {tensor.dtype} {list(tensor.shape)}"


# The configuration that the compiler prints


def printed_config(log: str) -> dict[str, Any] | None:
    """The fields of the last Config(...) in a log, which the compiler prints after it read config.json; None if there
    is none. Classes of other names, such as QuantConfig, are not it."""
    starts = [found.start() for found in _CONFIG.finditer(log)]
    if not starts:
        return None
    text = log[starts[-1] : starts[-1] + _MAX_CONFIG]
    depths = accumulate((character == "(") - (character == ")") for character in text[len("Config") :])
    end = next((place for place, depth in enumerate(depths) if not depth), None)
    if end is None:
        return None
    try:
        call = ast.parse(" ".join(text[: len("Config") + end + 1].split()), mode="eval").body
        assert isinstance(call, ast.Call)
        return {word.arg: _literal(word.value) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
        return None


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:  # the name of a class, for example
        return None


def config_differences(found: Mapping[str, Any], spec: DecoderSpec) -> Iterator[str]:
    """Yields the differences between the fields that the compiler printed and the slice's spec; it may print fewer."""
    for name, value in _wanted_config(spec).items():
        if found.get(name) is not None and not _equal(found[name], value):
            yield f"{name} is {value!r} in the model's spec, but the compiler read {found[name]!r:.80}"


def is_comparable(found: Mapping[str, Any], spec: DecoderSpec) -> bool:
    """Whether the compiler printed any of the fields that `config_differences` compares."""
    return any(found.get(name) is not None for name in _wanted_config(spec))


def _wanted_config(spec: DecoderSpec) -> dict[str, Any]:
    """The values that the compiler should read, by all names that its versions print."""
    layer = spec.layer
    root = math.sqrt(spec.num_hidden_layers)
    wanted: dict[str, Any] = {
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": layer.num_attention_heads,
        "num_key_value_heads": layer.num_key_value_heads,
        "hidden_size": layer.hidden_size,
        "intermediate_size": layer.intermediate_size,
        "vocab_size": spec.vocab_size,
        "head_dim": layer.head_dim,
        "rope_theta": layer.rope.theta,
        "rope_theta_base": layer.rope.theta,
        "rms_norm_eps": layer.norm.eps,
        "norm_eps": layer.norm.eps,
        "norm_type": layer.norm.kind,
        "hidden_act": layer.hidden_act,
        "use_qk_norm": layer.qk_norm,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "rope_partial_factor": layer.rope.rotary_dim / layer.head_dim,
    }
    if layer.residual_scale != 1:  # otherwise the vendor's tool prints a value that it does not use
        wanted["scale_depth"] = layer.residual_scale * root
    return wanted


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str | bool) or isinstance(found, str | bool):
        return bool(found == wanted)
    return isinstance(found, int | float) and math.isclose(found, wanted, rel_tol=1e-5)


# What errors mean

_KNOWN = (
    (
        r"H0007|Sentinel key not found",
        "it found no licence (H0007): give the folder with the licence files as `licence`, see docs/vendor.md#licence",
    ),
    (
        r"model_type error:? *(\S*)",
        "this version does not know the model_type {}: use a newer version, or backend host",
    ),
    (
        r"HeaderTooLarge",
        "the weights are a pointer of Git LFS, not weights: run `git lfs pull` in the checkpoint, or fetch it again",
    ),
    (
        r"Errno 122|Disk quota exceeded",
        "its temporary files exceed a disk quota (Errno 122): put the store on a larger disk, with --config store=DIR",
    ),
    (r"Errno 28|No space left on device", "no space is left on the disk of the store: free some space and run again"),
    (
        r"TileFailException|OpBuildException|NPUBackendError|ocm alloc",
        "a shape does not fit the chip's memory: lower prefill_len or kv_cache_len, or try another version",
    ),
    (
        r"Cannot connect to the Docker daemon|permission denied while trying to connect to the Docker",
        "Docker does not answer: start its service, and let this user run `docker info`",
    ),
    (
        r"unrecognized arguments: *(.*)",
        "it does not know the options {}: remove them from `options`, or use another version",
    ),
)


def explain(outcome: RunResult, settings: Settings, problems: Sequence[str]) -> str:
    """Why a run failed, and what to do. `problems` are what is wrong with its files."""
    if outcome.ended_because:
        remedy = "memory_mb" if "memory" in outcome.ended_because else "minutes"
        return f"{outcome.ended_because}, so it was ended: raise `{remedy}` in `compiler`"
    for pattern, text in _KNOWN:
        if found := re.search(pattern, outcome.log):
            return text.format(*(word.strip()[:80] for word in found.groups()))
    if outcome.status in (137, -9):
        return (
            f"it was killed, probably because memory ran out (exit status {outcome.status}): raise `memory_mb` in "
            f"`compiler`, or run fewer jobs at once"
        )
    if outcome.said_done and problems:
        return f"it says that it finished, but {problems[0]}"
    last = next((line.strip() for line in reversed(outcome.log.splitlines()) if line.strip()), "it logged nothing")
    said = "" if outcome.said_done else f", and never logged {DONE!r}"
    return f"it ended with exit status {outcome.status}{said}. Its last line: {last[:300]}"


def describe(found: Mapping[str, Any] | None) -> str:
    """The printed configuration as text for receipts; "" if it printed none."""
    return "" if found is None else json.dumps(found, sort_keys=True, default=str)[:4000]
