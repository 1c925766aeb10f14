"""Tokens to calibrate with: a user's text, or what the model says when nobody asks.

That a model's own words serve as well as other people's is the observation of Liu et al., "LLM-QAT: Data-Free
Quantization Aware Training for Large Language Models" (2023).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from axzoo.calibrate.parallel import in_parallel
from axzoo.core.errors import AxzooError
from axzoo.model.oracle import Oracle, Past, Weights, layer, post
from axzoo.tokenizer.local import LocalTokenizer

LENGTH = 256
"""Tokens of a sequence."""

GROUP = 16
"""Sequences that one core continues at once: what a step costs is reading the weights, for however many."""

SEED = 0

CHARACTERS_PER_TOKEN = 64
"""At most this much of a text is read for each token wanted."""


def text_tokens(path: Path, tokenizer: LocalTokenizer, sequences: int) -> Tensor:
    """The first tokens of a text -> [sequences, LENGTH] int64.

    Raises AxzooError when the text is too short or not UTF-8.
    """
    count = sequences * LENGTH
    try:
        with path.open(encoding="utf-8") as file:
            ids = tokenizer.encode(file.read(CHARACTERS_PER_TOKEN * count))[:count]
    except UnicodeDecodeError as error:
        raise AxzooError(f"{path} is not UTF-8 ({error}): calibration_text must be a plain text") from None
    if len(ids) < count:
        raise AxzooError(
            f"{path} has {len(ids)} tokens and calibration_tokens asks for {count}: give a longer text, or lower it"
        )
    return torch.tensor(ids).view(sequences, LENGTH)


def generated_tokens(oracle: Oracle, vocab_size: int, sequences: int) -> Tensor:
    """What the model says at temperature 1 after a random token below `vocab_size` -> [sequences, LENGTH] int64.

    The whole model is held in fp32. Equal models give equal tokens, on any number of cores of one kind.
    """
    layers = [oracle.layer_weights(index) for index in range(oracle.spec.num_hidden_layers)]
    head = oracle.post_weights()

    def continued(group: int) -> Tensor:
        generator = torch.Generator().manual_seed(SEED + group)
        ids = torch.randint(vocab_size, (min(GROUP, sequences - group), 1), generator=generator)
        pasts: list[Past | None] = [None] * len(layers)
        while ids.shape[1] < LENGTH:
            logits = _next_logits(oracle, layers, head, ids[:, -1], pasts)
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
        return ids

    return torch.cat(in_parallel(continued, range(0, sequences, GROUP)))


def _next_logits(
    oracle: Oracle, layers: list[Weights], head: Weights, last: Tensor, pasts: list[Past | None]
) -> Tensor:
    """last [sequences], each after its row of `pasts`, which grow by it -> logits [sequences, vocab_size]."""
    x = oracle.embed(last.tolist())[:, None]
    for index, weights in enumerate(layers):
        step = partial(layer, oracle.spec.layer_spec(index), weights, max_length=oracle.max_length)
        x, pasts[index] = torch.vmap(step, in_dims=(0, None if pasts[index] is None else 0))(x, pasts[index])
    return post(oracle.spec.post, head, x[:, 0])
