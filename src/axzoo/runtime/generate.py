"""Generates an answer token by token, with the timings that the board's host program reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from axzoo.runtime.model import Model


def rewind_to_common_prefix(model: Model, ids: Sequence[int]) -> int:
    """Rewind the context to the prefix it shares with the prompt `ids` and return the length of that prefix.

    The last prompt token is always left to be read, because reading it yields the logits.
    """
    length = _common_length(model.tokens, ids[:-1])
    model.rewind(length)
    return length


class PrefixReuse:
    """Decides how much of the cached context a new prompt can reuse.

    The last bits of a token's keys and values depend on how many tokens were read in the same call, and so do all later
    logits. If only whole chunks that were read as a prompt are reused, the logits are bit-identical to those computed
    from an empty context. This class tracks how many cached tokens were read in such chunks.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._chunk = model.geometry.chunk_len
        self._chunked = 0  # leading tokens of the context that were read in whole chunks

    def rewind(self, ids: Sequence[int], repeatable: bool) -> int:
        """Rewind the context to the part that the prompt `ids` can reuse and return its length.

        The caller reads the rest of the prompt next. With `repeatable`, the logits do not depend on earlier contents of
        the context.
        """
        length = rewind_to_common_prefix(self._model, ids)
        self._chunked = min(self._chunked, length)
        if repeatable:
            length = self._whole_chunks(self._chunked)
            self._model.rewind(length)
        if length == self._whole_chunks(self._chunked):
            self._chunked = self._whole_chunks(len(ids))
        return length

    def _whole_chunks(self, length: int) -> int:
        return length // self._chunk * self._chunk


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


Sampler = Callable[[NDArray[np.float32], Sequence[int]], int]
"""Selects the next token: (logits [V], answer tokens so far) -> token id."""

StopReason = Literal["eos", "max tokens", "context full"]


class Generation:
    """An answer in progress. Iterate over it once to get its token ids, without the end-of-sequence token.

    `ttft` is the time to first token in seconds, set before the first id is yielded. After the iteration, `stop_reason`
    says why the answer ended, and `tokens_per_second` is the decode speed after the first token (0 if there was no
    decode step). Time that the consumer spends between tokens is not counted.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        sampler: Sampler,
        eos: AbstractSet[int],
        max_tokens: int | None = None,
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._sampler = sampler
        self._eos = eos
        self._max_tokens = max_tokens
        self._steps = 0
        self._seconds = 0.0
        self.ttft = 0.0
        self.stop_reason: StopReason | None = None

    @property
    def tokens_per_second(self) -> float:
        return self._steps / self._seconds if self._steps else 0.0

    def __iter__(self) -> Iterator[int]:
        answer: list[int] = []
        start = perf_counter()
        token = self._sampler(self._model.prefill(self._prompt), answer)
        self.ttft = perf_counter() - start
        while token not in self._eos:
            answer.append(token)
            yield token
            if len(answer) == self._max_tokens:
                self.stop_reason = "max tokens"
                return
            if self._model.is_full:
                self.stop_reason = "context full"
                return
            start = perf_counter()
            token = self._sampler(self._model.decode(token), answer)
            self._seconds += perf_counter() - start
            self._steps += 1
        self.stop_reason = "eos"


def generate(
    model: Model, ids: Sequence[int], sampler: Sampler, eos: AbstractSet[int], max_tokens: int | None = None
) -> Generation:
    """Start the answer to a prompt. Only prompt tokens that the model's context does not hold yet are read."""
    return Generation(model, ids[rewind_to_common_prefix(model, ids) :], sampler, eos, max_tokens)
