"""`axzoo calibrate`: choose the tokens, then compute and store the hidden states of each layer."""

from __future__ import annotations

import logging
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
from axzoo.calibrate.tokens import LENGTH, SEED, generated_tokens, held, text_tokens
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import atomic_path, read_json, sha256_of, write_json
from axzoo.core.stamps import recorded
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.oracle import Oracle, layer
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.parts.kind import PartId
from axzoo.parts.kinds import part_ids
from axzoo.parts.lock_index import INDEX as LOCK_INDEX
from axzoo.parts.receipt import calibration_inputs, states_file
from axzoo.tokenizer.local import find_tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


INDEX = "index.json"
GROUP = 8
"""Sequences per task of one core."""

_TENSOR = "hidden_states"


def layer_inputs(oracle: Oracle, tokens: Tensor) -> Iterator[Tensor]:
    """Yields each layer's input for tokens [sequences, length]: [sequences, length, hidden_size] fp32.

    One layer's weights are in memory at a time.
    """
    x = torch.stack([oracle.embed(ids) for ids in tokens.tolist()])
    yield x
    for index in range(oracle.spec.num_hidden_layers - 1):
        (weights,) = held([oracle.layer_weights(index)])
        run = partial(layer, oracle.spec.layer_spec(index), weights, max_length=oracle.max_length)
        x = torch.cat([output for output, _ in in_parallel(torch.vmap(run), torch.split(x, GROUP))])
        yield x


def write_states(folder: Path, oracle: Oracle, tokens: Tensor, origin: Mapping[str, Any], inputs: str) -> None:
    """Writes each layer's hidden states in bf16, and the index. `origin`, plain JSON, records where the tokens come
    from, `inputs` is the digest of what was read."""
    files = {}
    for index, states in enumerate(layer_inputs(oracle, tokens)):
        path = folder / states_file(PartId("layer", index))
        with atomic_path(path) as temporary:
            save_file({_TENSOR: states.bfloat16()}, temporary)
        files[path.name] = recorded(path)
    layers = {name: record["sha256"] for name, record in files.items()}
    listed = {"layers": layers, "inputs": inputs, "files": files}
    write_json(folder / INDEX, {"origin": origin, "tokens": tokens.tolist(), **listed})


@dataclass(frozen=True)
class LayerStates:
    """The hidden states file of one layer, as listed in the index."""

    path: Path
    sha256: str
    origin: Mapping[str, Any]

    @property
    def description(self) -> dict[str, Any]:
        """What a file calibrated by these states records of them, as plain JSON values."""
        return {"sha256": self.sha256, **self.origin}

    def read(self, hidden_size: int) -> Tensor:
        """The layer's inputs, [sequences, length, hidden_size] fp32.

        Raises AxzooError when the file is missing, was changed, or belongs to another model.
        """
        remedy = f"remove {self.path.parent / INDEX} and calibrate again"
        if not self.path.is_file():
            raise AxzooError(f"{self.path} is missing: {remedy}")
        if sha256_of(self.path) != self.sha256:
            raise AxzooError(f"{self.path} was changed after it was written: {remedy}")
        try:
            with safe_open(self.path, framework="pt") as file:
                states: Tensor = file.get_tensor(_TENSOR)
        except SafetensorError as error:
            raise AxzooError(f"{self.path} contains no hidden states ({error}): {remedy}") from None
        if states.ndim != 3 or states.shape[2] != hidden_size:
            raise AxzooError(f"{self.path} has shape {list(states.shape)}, but hidden_size is {hidden_size}: {remedy}")
        return states.float()


def find_states(path: Path) -> LayerStates:
    """Looks up a layer's file in the index next to it. Raises AxzooError when the index is missing or damaged."""
    index = path.parent / INDEX
    content = read_json(index)
    try:
        return LayerStates(path, str(content["layers"][path.name]), dict(content["origin"]))
    except (KeyError, TypeError, ValueError):
        raise AxzooError(f"{index} does not list {path.name}: remove {index} and calibrate again") from None


def calibrate(locks: Path, source: Path, output: Path, text: Path | None, tokens: int) -> None:
    """Runs as many whole sequences as fit in `tokens` and writes the folder `output`, index.json last.

    Without `text`, the model generates the tokens. Raises AxzooError when the text is too short or `tokens` too small.
    """
    if tokens < LENGTH:
        raise AxzooError(f"{tokens} tokens are fewer than one sequence: give at least {LENGTH}")
    digest = None if text is None else sha256_of(text)
    oracle = checkpoint_oracle(locks, source, LENGTH)
    names = [LOCK_INDEX, *(part.lock_file for part in part_ids(oracle.spec))]
    inputs = calibration_inputs({name: sha256_of(locks / name) for name in names}, digest, tokens)
    ids = _tokens(oracle, checkpoint_folder(source), text, tokens // LENGTH)
    origin: dict[str, Any] = {"tokens": ids.numel(), "length": LENGTH}
    origin |= {"seed": SEED} if digest is None else {"text": digest}
    write_states(output, oracle, ids, origin, inputs)
    logger.log(SUCCESS, f"calibrated {output}: {ids.numel()} tokens, {oracle.spec.num_hidden_layers} layers")


def _tokens(oracle: Oracle, checkpoint: Path, text: Path | None, sequences: int) -> Tensor:
    if text is not None:
        return text_tokens(text, load_tokenizer(checkpoint), sequences)
    tokenizer = find_tokenizer(checkpoint)
    sizes = [oracle.spec.vocab_size, *([] if tokenizer is None else [tokenizer.vocab_size])]
    return generated_tokens(oracle, min(sizes), sequences)
