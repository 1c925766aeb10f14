"""Answers of one model to many clients: one after the other, with a bound on those that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from axzoo.runtime.generate import Generation, Reuse
from axzoo.runtime.model import Model
from axzoo.runtime.post_config import PostConfig
from axzoo.runtime.prompting import Prompting
from axzoo.runtime.sampling import sample
from axzoo.tokenizer.chat_template import Message


class StopText:
    """Passes an answer's pieces on until one of `stops` appears, which is left out together with what follows.

    What may be the beginning of one is held back until it is known.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What can be passed on, now that `piece` has come."""
        text = self._held + piece
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """The rest, when no more pieces come."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters begin `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((count for count in range(most, 0, -1) if text.endswith(stop[:count])), 0)


_T = TypeVar("_T")


class Busy(Exception):
    """As many clients wait as may."""


@dataclass(frozen=True)
class Question:
    """`stop` are texts that end the answer, `most_tokens` its length (None: the context's)."""

    messages: Sequence[Message]
    sampling: PostConfig
    seed: int | None
    stop: Sequence[str]
    most_tokens: int | None

    @property
    def repeatable(self) -> bool:
        """Whether the same question must get the same answer."""
        return self.seed is not None or not self.sampling.draws


@dataclass(frozen=True)
class Ending:
    """How an answer ended and what it took: seconds to the first token, tokens per second after it. `cached_tokens` are
    those of the prompt that were not read again."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    ttft: float
    tokens_per_second: float


class Answers:
    """Asks `model`, whose context stays: a conversation that goes on is not read again.

    All steps of the model run in one thread, so one that nobody waits for any more disturbs no other.
    """

    def __init__(self, model: Model, prompting: Prompting, most_waiting: int) -> None:
        self._model = model
        self._reuse = Reuse(model)
        self._prompting = prompting
        self._most_waiting = most_waiting
        self._waiting = 0
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "model")

    async def answer(self, question: Question) -> AsyncGenerator[str | Ending]:
        """The answer's pieces as they come, whole characters, and last its ending.

        Raises Busy, and AxzooError when the question cannot be encoded or does not fit the context.
        """
        with self._place():
            ids = await asyncio.to_thread(self._prompting.encode, question.messages)
            async with self._turn:
                async for piece in self._pieces(ids, question):
                    yield piece

    async def _pieces(self, ids: list[int], question: Question) -> AsyncGenerator[str | Ending]:
        stream, stops = self._prompting.stream(), StopText(question.stop)
        generation, tokens, kept = await self._in_turn(lambda: self._start(ids, question))
        count = 0
        while not stops.found and (token := await self._in_turn(lambda: next(tokens, None))) is not None:
            count += 1
            if piece := stops.push(stream.push(token)):
                yield piece
        if not stops.found:
            rest = stops.push(stream.flush(cut=generation.stop != "eos"))
            if rest := rest + stops.flush():
                yield rest
        reason: Literal["stop", "length"] = "stop" if stops.found or generation.stop == "eos" else "length"
        yield Ending(reason, len(ids), kept, count, generation.ttft, generation.tokens_per_second)

    def _start(self, ids: list[int], question: Question) -> tuple[Generation, Iterator[int], int]:
        """The answer, not begun, its iterator, and how many of the prompt's tokens need not be read."""
        rng = np.random.default_rng(None if question.seed is None else question.seed % (1 << 64))
        kept = self._reuse.keep(ids, question.repeatable)
        generation = Generation(
            self._model,
            ids[kept:],
            lambda logits, answer: sample(logits, answer, question.sampling, rng),
            self._prompting.eos,
            question.most_tokens,
        )
        return generation, iter(generation), kept

    async def _in_turn(self, step: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of those that are answered or wait."""
        if self._waiting > self._most_waiting:
            raise Busy
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
