"""The whole of `axzoo calibrate`: tokens, then the hidden states they become."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from axzoo.calibrate.states import write_states
from axzoo.calibrate.tokens import LENGTH, SEED, generated_tokens, text_tokens
from axzoo.check.oracle import checkpoint_oracle
from axzoo.checkpoint.part import read_part
from axzoo.errors import AxzooError
from axzoo.estimate import elements
from axzoo.fetch.receipt import checkpoint_folder
from axzoo.files import sha256_of
from axzoo.lock_files import POST, layer_lock
from axzoo.log import SUCCESS
from axzoo.reference import Oracle
from axzoo.tokenizer.local import load_tokenizer

logger = logging.getLogger(__name__)


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
