"""An answer, token by token, with the times the board's host reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from axzoo.runtime.model import Model


def keep_common(model: Model, ids: Sequence[int]) -> int:
    """Rewinds the context to what it shares with the prompt `ids`; returns that length. The prompt's last token is
    read in any case: it brings the logits."""
    length = _common_length(model.tokens, ids[:-1])
    model.rewind(length)
    return length


class Reuse:
    """Keeps account of which tokens of `model`'s context were read as a prompt in an empty context is: in whole chunks.

    A token's keys and values depend in their last bits on how many tokens were read with it, and so do the logits
    behind it. Logits behind whole chunks alone are those an empty context gives, bit for bit.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._chunk = model.geometry.chunk_len
        self._settled = 0

    def keep(self, ids: Sequence[int], repeatable: bool) -> int:
        """Rewinds the context to what the prompt `ids` can use of it, and returns that length; the rest of the prompt
        is to be read next. With `repeatable` its logits will not depend on what the context held before."""
        length = keep_common(self._model, ids)
        self._settled = min(self._settled, length)
        if repeatable:
            length = self._whole(self._settled)
            self._model.rewind(length)
        if length == self._whole(self._settled):
            self._settled = self._whole(len(ids))
        return length

    def _whole(self, length: int) -> int:
        return length // self._chunk * self._chunk


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


Choose = Callable[[NDArray[np.float32], Sequence[int]], int]
"""Picks the next token: (logits [V], tokens of the answer so far) -> id."""

Stop = Literal["eos", "max tokens", "context full"]


class Generation:
    """Iterate once for the answer's token ids, without the one that ends it.

    From the first id on `ttft` is known: seconds from the start to the first sampled token. At the end `stop` says why,
    and `tokens_per_second` how fast the tokens after the first came (0 without any), the consumer's time left out.
    """

    def __init__(
        self, model: Model, prompt: Sequence[int], choose: Choose, eos: AbstractSet[int], max_tokens: int | None = None
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._choose = choose
        self._eos = eos
        self._max_tokens = max_tokens
        self._steps = 0
        self._seconds = 0.0
        self.ttft = 0.0
        self.stop: Stop | None = None

    @property
    def tokens_per_second(self) -> float:
        return self._steps / self._seconds if self._steps else 0.0

    def __iter__(self) -> Iterator[int]:
        answer: list[int] = []
        start = perf_counter()
        token = self._choose(self._model.prefill(self._prompt), answer)
        self.ttft = perf_counter() - start
        while token not in self._eos:
            answer.append(token)
            yield token
            if len(answer) == self._max_tokens:
                self.stop = "max tokens"
                return
            if self._model.is_full:
                self.stop = "context full"
                return
            start = perf_counter()
            token = self._choose(self._model.decode(token), answer)
            self._seconds += perf_counter() - start
            self._steps += 1
        self.stop = "eos"


def generate(
    model: Model, ids: Sequence[int], choose: Choose, eos: AbstractSet[int], max_tokens: int | None = None
) -> Generation:
    """The answer to a whole prompt, of which only what the model's context lacks is read."""
    return Generation(model, ids[keep_common(model, ids) :], choose, eos, max_tokens)
