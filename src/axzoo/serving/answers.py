"""Answers the questions of many clients with one model, one after another, with a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.runtime.generate import Generation, PrefixReuse
from axzoo.runtime.model import Model
from axzoo.runtime.prompting import ChatTokenizer
from axzoo.runtime.sampling import sample, top_logprobs
from axzoo.serving.chat_requests import ChatPrompt, TextPrompt
from axzoo.serving.clients import Client, Exchange
from axzoo.serving.generation_fields import GenerationSettings
from axzoo.serving.prompts import PromptEncoder
from axzoo.serving.stop_text import StopText

if TYPE_CHECKING:
    from axzoo.runtime.image_encoder import EncodedImage
    from axzoo.serving.pictures import PictureEncoder

_T = TypeVar("_T")


class QueueFull(Exception):
    """The maximum number of requests is waiting."""


@dataclass(frozen=True)
class Question:
    """A request to the model. `logprobs` is the number of alternatives for each token, or None for no logprobs."""

    client: Client
    prompt: ChatPrompt | TextPrompt
    settings: GenerationSettings
    logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """An answer token, its log probability, and the most probable tokens at its position, as (text, logprob)."""

    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """A part of an answer, in whole characters. `logprobs` are those of its tokens, if the question asks for them."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


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


@dataclass(frozen=True)
class _EncodedPrompt:
    """The token ids of a prompt, with placeholders for the rows of its images."""

    ids: list[int]
    images: tuple[EncodedImage, ...] = ()


@dataclass
class _Answer:
    """An answer in progress. `steps` has one entry for each token that was chosen, if the question has logprobs."""

    generation: Generation
    tokens: Iterator[int]
    prompt_tokens: int
    cached: int
    steps: list[TokenLogprob] = field(default_factory=list)


class AnswerQueue:
    """Answers one question at a time; up to `max_waiting` others wait.

    The context of the model is kept, so that a continued conversation is not read again. All steps of the model run in
    a single thread, so that a step whose client has disconnected cannot overlap with the next answer. Prompts are
    encoded in another single thread, because encoding a long one takes much memory.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: ChatTokenizer,
        prompts: PromptEncoder,
        max_waiting: int,
        pictures: PictureEncoder | None = None,
    ) -> None:
        self._model = model
        self._reuse = PrefixReuse(model)
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._pictures = pictures
        self._max_waiting = max_waiting
        self._last: Exchange | None = None  # the one whose tokens the context holds
        self.waiting = 0
        """Questions that wait or are being answered."""
        self._model_lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "model")
        self._encoder = ThreadPoolExecutor(1, "tokenizer")

    @property
    def sees(self) -> bool:
        """Whether prompts can have pictures."""
        return self._pictures is not None

    async def answer(self, question: Question) -> AsyncGenerator[Piece | AnswerSummary]:
        """Yield the pieces of the answer as they are generated, followed by its summary.

        Raises QueueFull when too many questions wait. Raises AxzooError when the question cannot be encoded or does not
        fit the context.
        """
        with self._queued():
            prompt = await self._run(self._encoder, lambda: self._encode(question.prompt))
            async with self._model_lock:
                async for piece in self._pieces(prompt, question):
                    yield piece

    def _encode(self, prompt: ChatPrompt | TextPrompt) -> _EncodedPrompt:
        if self._pictures is None or isinstance(prompt, TextPrompt) or not prompt.pictures:
            return _EncodedPrompt(self._prompts.encode(prompt))
        from axzoo.serving.pictures import with_placeholders

        images = self._pictures.encode(prompt.pictures)
        return _EncodedPrompt(self._prompts.encode(with_placeholders(prompt, images)), tuple(images))

    async def _pieces(self, prompt: _EncodedPrompt, question: Question) -> AsyncGenerator[Piece | AnswerSummary]:
        stream, stops = self._tokenizer.stream(), StopText(question.settings.stop)
        ids = prompt.ids
        answer = await self._run(self._thread, lambda: self._start(prompt, question))
        pending = PendingLogprobs(answer.steps)
        text, count = "", 0

        def step() -> str | None:
            """Return the text that the next token completes, or None if there is none. Untrusted code decodes it."""
            token = next(answer.tokens, None)
            return None if token is None else stream.push(token)

        try:
            while not stops.found and (new := await self._run(self._thread, step)) is not None:
                count += 1
                if piece := stops.push(new):
                    text += piece
                    yield pending.piece(piece, count, stops.found)
            if not stops.found:
                truncated = answer.generation.stop_reason != "eos"
                rest = stops.push(await self._run(self._thread, lambda: stream.flush(truncated)))
                rest += stops.flush()
                if rest or pending.has_logprobs(count):
                    text += rest
                    yield pending.piece(rest, count, stops.found)
        finally:
            self._last = Exchange(question.client, question.prompt, text)
        ended = stops.found or answer.generation.stop_reason == "eos"
        speed = answer.generation.tokens_per_second
        yield AnswerSummary(
            "stop" if ended else "length", len(ids), answer.cached, count, answer.generation.ttft, speed
        )

    def _start(self, prompt: _EncodedPrompt, question: Question) -> _Answer:
        """Prepare an answer. Raises AxzooError when the prompt does not fit the context, which is then unchanged."""
        ids, room = prompt.ids, self._model.geometry.max_token_len
        if len(ids) > room:
            raise AxzooError(
                f"the prompt has {len(ids)} tokens, but the context holds only {room}: send fewer or shorter messages, "
                "or build with a larger kv_cache_len"
            )
        if prompt.images:
            from axzoo.runtime.image_encoder import insert_rows

            ids = insert_rows(self._model, ids, prompt.images)
        settings = question.settings
        rng = np.random.default_rng(None if settings.seed is None else settings.seed % (1 << 64))
        if self._last is None or not self._last.may_be_reused_by(question.client, question.prompt):
            self._model.reset()
        self._last = None
        cached = self._reuse.rewind(ids, settings.repeatable)
        steps: list[TokenLogprob] = []

        def choose(logits: NDArray[np.float32], answer: Sequence[int]) -> int:
            token = sample(logits, answer, settings.sampling, rng, settings.adjustments)
            if question.logprobs is not None:
                steps.append(self._logprob(logits, token, question.logprobs))
            return token

        generation = Generation(self._model, ids[cached:], choose, self._tokenizer.eos, settings.token_limit)
        return _Answer(generation, iter(generation), len(ids), cached, steps)

    def _logprob(self, logits: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
        chosen, best = top_logprobs(logits, token, count)
        text = self._prompts.token_text
        return TokenLogprob(text(token), chosen, tuple((text(other), logprob) for other, logprob in best))

    async def _run(self, thread: ThreadPoolExecutor, step: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(thread, step)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """Count a question as waiting or being answered. Raises QueueFull when there are too many."""
        if self.waiting > self._max_waiting:
            raise QueueFull
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


class PendingLogprobs:
    """Assigns the logprobs of tokens to the pieces of text that they belong to."""

    def __init__(self, steps: Sequence[TokenLogprob]) -> None:
        self._steps = steps
        self._given = 0

    def has_logprobs(self, count: int) -> bool:
        return len(self._steps[self._given : count]) > 0

    def piece(self, text: str, count: int, cut: bool) -> Piece:
        """Return a piece with the tokens after the previous piece, of the first `count` tokens.

        If the text was `cut` before a stop text, tokens that begin after its end are dropped.
        """
        found = list(self._steps[self._given : count])
        self._given = count
        while cut and found and sum(len(step.text) for step in found[:-1]) >= len(text):
            found.pop()
        return Piece(text, tuple(found))
