"""Answers the questions of many clients with one model, one after another, with a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from axzoo.runtime.generate import Generation, PrefixReuse
from axzoo.runtime.model import Model
from axzoo.runtime.post_config import PostConfig
from axzoo.runtime.prompting import ChatTokenizer
from axzoo.runtime.sampling import sample
from axzoo.tokenizer.chat_template import Message


class StopText:
    """Ends an answer before the first of the texts in `stops`. Text that may be the start of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Return the text that is safe to pass on after `piece` has arrived."""
        text = self._held + piece
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """Return the text held back, after the last piece."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)


_T = TypeVar("_T")


class QueueFull(Exception):
    """The maximum number of requests is waiting."""


@dataclass(frozen=True)
class Question:
    """A request to the model. `stop` are texts that end the answer; without `token_limit`, the context limits it."""

    messages: Sequence[Message]
    sampling: PostConfig
    seed: int | None
    stop: Sequence[str]
    token_limit: int | None

    @property
    def repeatable(self) -> bool:
        """Whether the same question must always get the same answer."""
        return self.seed is not None or not self.sampling.is_random


@dataclass(frozen=True)
class AnswerSummary:
    """Why an answer ended, its token counts and its speed.

    `cached_tokens` is the number of prompt tokens found in the KV cache. `ttft` is the time to first token in seconds,
    and `tokens_per_second` the decode speed after it.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    ttft: float
    tokens_per_second: float


class AnswerQueue:
    """Answers one question at a time; up to `max_waiting` others wait.

    The context of the model is kept, so that a continued conversation is not read again. All steps of the model run in
    a single thread, so that a step whose client has disconnected cannot overlap with the next answer.
    """

    def __init__(self, model: Model, tokenizer: ChatTokenizer, max_waiting: int) -> None:
        self._model = model
        self._reuse = PrefixReuse(model)
        self._tokenizer = tokenizer
        self._max_waiting = max_waiting
        self._waiting = 0
        self._model_lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "model")

    async def answer(self, question: Question) -> AsyncGenerator[str | AnswerSummary]:
        """Yield the pieces of the answer as they are generated, as whole characters, followed by its summary.

        Raises QueueFull when too many questions wait. Raises AxzooError when the question cannot be encoded or does not
        fit the context.
        """
        with self._queued():
            ids = await asyncio.to_thread(self._tokenizer.encode, question.messages)
            async with self._model_lock:
                async for piece in self._pieces(ids, question):
                    yield piece

    async def _pieces(self, ids: list[int], question: Question) -> AsyncGenerator[str | AnswerSummary]:
        stream, stops = self._tokenizer.stream(), StopText(question.stop)
        generation, tokens, cached = await self._run_step(lambda: self._start(ids, question))
        count = 0
        while not stops.found and (token := await self._run_step(lambda: next(tokens, None))) is not None:
            count += 1
            if piece := stops.push(stream.push(token)):
                yield piece
        if not stops.found:
            rest = stops.push(stream.flush(truncated=generation.stop_reason != "eos"))
            if rest := rest + stops.flush():
                yield rest
        reason: Literal["stop", "length"] = "stop" if stops.found or generation.stop_reason == "eos" else "length"
        yield AnswerSummary(reason, len(ids), cached, count, generation.ttft, generation.tokens_per_second)

    def _start(self, ids: list[int], question: Question) -> tuple[Generation, Iterator[int], int]:
        """Prepare an answer. Return it, its iterator, and the number of cached prompt tokens."""
        rng = np.random.default_rng(None if question.seed is None else question.seed % (1 << 64))
        cached = self._reuse.rewind(ids, question.repeatable)
        generation = Generation(
            self._model,
            ids[cached:],
            lambda logits, answer: sample(logits, answer, question.sampling, rng),
            self._tokenizer.eos,
            question.token_limit,
        )
        return generation, iter(generation), cached

    async def _run_step(self, step: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """Count a question as waiting or being answered. Raises QueueFull when there are too many."""
        if self._waiting > self._max_waiting:
            raise QueueFull
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
