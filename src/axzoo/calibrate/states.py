"""The whole of `axzoo calibrate`: tokens, then the hidden states they become."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from axzoo.calibrate.parallel import in_parallel
from axzoo.calibrate.tokens import LENGTH, SEED, generated_tokens, text_tokens
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import atomic_path, read_json, sha256_of, write_json
from axzoo.fetch.sources import checkpoint_folder
from axzoo.matrix.preflight import elements
from axzoo.model.oracle import Oracle, layer
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.parts.lock import POST, layer_lock
from axzoo.parts.part import read_part
from axzoo.tokenizer.local import load_tokenizer

logger = logging.getLogger(__name__)


INDEX = "index.json"
GROUP = 8
"""Sequences that one core works on at once."""

_TENSOR = "hidden_states"


def layer_states(index: int) -> str:
    """The name of a layer's file."""
    return f"layer_{index}.safetensors"


def layer_inputs(oracle: Oracle, tokens: Tensor) -> Iterator[Tensor]:
    """tokens [sequences, length] -> each layer's input in fp32, [sequences, length, hidden_size].

    One layer's weights are held at a time.
    """
    x = torch.stack([oracle.embed(ids) for ids in tokens.tolist()])
    yield x
    for index in range(oracle.spec.num_hidden_layers - 1):
        run = partial(layer, oracle.spec.layer_spec(index), oracle.layer_weights(index), max_length=oracle.max_length)
        x = torch.cat([output for output, _ in in_parallel(torch.vmap(run), torch.split(x, GROUP))])
        yield x


def write_states(folder: Path, oracle: Oracle, tokens: Tensor, origin: Mapping[str, Any]) -> None:
    """Writes the layers' files, rounded to bf16, and the index; `origin`, plain JSON, says whence the tokens are."""
    digests = {}
    for index, states in enumerate(layer_inputs(oracle, tokens)):
        path = folder / layer_states(index)
        with atomic_path(path) as temporary:
            save_file({_TENSOR: states.bfloat16()}, temporary)
        digests[path.name] = sha256_of(path)
    write_json(folder / INDEX, {"origin": origin, "tokens": tokens.tolist(), "layers": digests})


@dataclass(frozen=True)
class States:
    """One layer's file as its index tells of it."""

    path: Path
    sha256: str
    origin: Mapping[str, Any]

    def read(self, hidden_size: int) -> Tensor:
        """[sequences, length, hidden_size] fp32. Raises AxzooError when the file is missing, not what was written, or
        another model's."""
        again = f"remove {self.path.parent / INDEX} and calibrate again"
        if not self.path.is_file():
            raise AxzooError(f"{self.path} is missing: {again}")
        if sha256_of(self.path) != self.sha256:
            raise AxzooError(f"{self.path} changed after it was written: {again}")
        try:
            with safe_open(self.path, framework="pt") as file:
                states: Tensor = file.get_tensor(_TENSOR)
        except SafetensorError as error:
            raise AxzooError(f"{self.path} holds no hidden states ({error}): {again}") from None
        if states.ndim != 3 or states.shape[2] != hidden_size:
            raise AxzooError(f"{self.path} has {list(states.shape)} and the layer is {hidden_size} wide: {again}")
        return states.float()


def find_states(path: Path) -> States:
    """Looks a layer's file up in the index beside it. Raises AxzooError when there is none, or it is damaged."""
    index = path.parent / INDEX
    content = read_json(index)
    try:
        return States(path, str(content["layers"][path.name]), dict(content["origin"]))
    except (KeyError, TypeError, ValueError):
        raise AxzooError(f"{index} does not list {path.name}: remove {index} and calibrate again") from None


def calibrate(locks: Path, source: Path, output: Path, text: Path | None, tokens: int) -> None:
    """Reads whole sequences up to `tokens` and writes the folder `output`; index.json comes last.

    Raises AxzooError when the text is too short, or there is none and the model does not fit in memory.
    """
    if tokens < LENGTH:
        raise AxzooError(f"{tokens} tokens are less than one sequence: give at least {LENGTH}")
    oracle = checkpoint_oracle(locks, source, LENGTH)
    ids = _tokens(oracle, locks, checkpoint_folder(source), text, tokens // LENGTH)
    origin: dict[str, Any] = {"tokens": ids.numel(), "length": LENGTH}
    origin |= {"seed": SEED} if text is None else {"text": sha256_of(text)}
    write_states(output, oracle, ids, origin)
    logger.log(SUCCESS, f"calibrated {output}: {ids.numel()} tokens through {oracle.spec.num_hidden_layers} layers")


def _tokens(oracle: Oracle, locks: Path, checkpoint: Path, text: Path | None, sequences: int) -> Tensor:
    tokenizer = load_tokenizer(checkpoint)
    if text is not None:
        return text_tokens(text, tokenizer, sequences)
    _check_memory(oracle, locks)
    return generated_tokens(oracle, min(oracle.spec.vocab_size, tokenizer.vocab_size), sequences)


def _check_memory(oracle: Oracle, locks: Path) -> None:
    names = [*map(layer_lock, range(oracle.spec.num_hidden_layers)), POST]
    needed = 4 * sum(elements(read_part(locks / name)) for name in names)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise AxzooError(
            f"the model takes {needed >> 20} MB of memory to speak for itself, and this machine has {memory >> 20} MB: "
            f"name a calibration_text, which is read with one layer in memory"
        )
