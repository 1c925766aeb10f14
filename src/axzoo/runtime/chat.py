"""A terminal chat that works like the board's host program: answers go to stdout, status lines to stderr."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from axzoo.core.errors import AxzooError
from axzoo.runtime.generate import Generation, Sampler, generate
from axzoo.runtime.geometry import Geometry
from axzoo.runtime.model import Model
from axzoo.runtime.prompting import ChatTokenizer, Encode, TextStream
from axzoo.tokenizer.chat_template import Message

if TYPE_CHECKING:
    from axzoo.runtime.image_encoder import EncodedImage


class Chat:
    """A conversation with the model. Turns share the KV caches: only tokens that are not cached yet are read.

    `system` is the system message; an empty string means none.
    """

    def __init__(
        self,
        model: Model,
        encode: Encode,
        sampler: Sampler,
        eos: AbstractSet[int],
        system: str = "",
        max_tokens: int | None = None,
    ) -> None:
        self._model = model
        self._encode = encode
        self._sampler = sampler
        self._eos = eos
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._max_tokens = max_tokens
        self._turns: list[Message] = []
        self._images: list[EncodedImage] = []

    def ask(self, question: str, image: EncodedImage | None = None) -> Generation:
        """Return the answer to a question, about an image if there is one, that follows the turns so far. Call
        `remember` to keep it as a turn.

        Raises AxzooError when the tokenizer rejects the question. Iterating over the answer raises AxzooError when the
        prompt does not fit the context.
        """
        ids = self._encode([*self._system, *self._turns, _user_message(question, image)])
        images = [*self._images, *([] if image is None else [image])]
        if images:
            from axzoo.runtime.image_encoder import insert_rows

            ids = insert_rows(self._model, ids, images)
        return generate(self._model, ids, self._sampler, self._eos, self._max_tokens)

    def remember(self, question: str, answer: str, image: EncodedImage | None = None) -> None:
        """Add a question, its image and its answer to the conversation."""
        self._turns += [_user_message(question, image), {"role": "assistant", "content": answer}]
        self._images += [] if image is None else [image]

    def reset(self) -> None:
        """Forget all turns."""
        self._turns, self._images = [], []
        self._model.reset()


def _user_message(question: str, image: EncodedImage | None) -> Message:
    return {"role": "user", "content": question if image is None else image.placeholder + question}


def print_geometry(geometry: Geometry) -> None:
    """Print what the board's host program prints after loading."""
    _print_status(f"max_token_len : {geometry.max_token_len}")
    _print_status(f"kv_cache_size : {geometry.kv_cache_size}, kv_cache_num: {geometry.kv_cache_num}")
    _print_status(f"prefill_token_num : {geometry.prefill_token_num}")
    _print_status("LLM init ok")


@dataclass(frozen=True)
class Terminal:
    """Prints answers and reads prompts. With `live_print`, an answer is printed as it is generated; otherwise whole.

    `encode_image` encodes a picture file. If it is None, the model has no vision, and prompts have no image.
    """

    chat: Chat
    tokenizer: ChatTokenizer
    live_print: bool
    encode_image: Callable[[Path], EncodedImage] | None = None

    def answer(self, question: str, picture: Path | None = None) -> None:
        """Print the answer, then add question and answer to the conversation. Ctrl-C ends the answer.

        Raises AxzooError when the question cannot be encoded or does not fit the context.
        """
        image = self._encoded(picture)
        generation = self.chat.ask(question, image)
        printer = _Printer(self.tokenizer.stream(), self.live_print)
        reason = "ctrl+c"
        try:
            for token in generation:
                if not printer.pieces:
                    _print_status(f"ttft: {generation.ttft * 1e3:.2f} ms")
                printer.push(token)
            reason = str(generation.stop_reason)
            if not printer.pieces:
                _print_status(f"ttft: {generation.ttft * 1e3:.2f} ms")
        except KeyboardInterrupt:
            pass
        self.chat.remember(question, printer.end(truncated=reason != "eos"), image)
        _print_status(f"\nhit {reason},avg {generation.tokens_per_second:.2f} token/s\n")
        if reason == "context full":
            _print_status("the context is full: ask shorter questions, reset, or build with a larger kv_cache_len")

    def run(self) -> None:
        """Read prompts until `q` or end of input; `reset` clears the conversation. A failed prompt prints its error."""
        _enable_line_editing()
        print('Type "q" to exit, Ctrl+c to stop current running', flush=True)
        prompt = ">> " if self.encode_image is None else "prompt >> "
        while (line := _read_line(prompt)) is not None and line.strip() != "q":
            if line.strip() == "reset":
                self.chat.reset()
            elif line.strip():
                picture = None if self.encode_image is None else _read_line("image >> ")
                self._try_answer(line, Path(picture.strip()) if picture and picture.strip() else None)

    def _encoded(self, picture: Path | None) -> EncodedImage | None:
        if picture is None:
            return None
        if self.encode_image is None:
            raise AxzooError(f"{picture}: this model has no vision model, so it cannot read pictures: omit the image")
        start = perf_counter()
        image = self.encode_image(picture)
        _print_status(f"image encode time : {(perf_counter() - start) * 1e3:.6f} ms")
        return image

    def _try_answer(self, question: str, picture: Path | None) -> None:
        try:
            self.answer(question, picture)
        except AxzooError as error:
            _print_status(f"axzoo: {error}")
        except KeyboardInterrupt:  # pressed while the question was being encoded
            _print_status("")


class _Printer:
    """Prints tokens as text. `pieces` holds the text of each token."""

    def __init__(self, stream: TextStream, live_print: bool) -> None:
        self._stream = stream
        self._live_print = live_print
        self.pieces: list[str] = []

    def push(self, token: int) -> None:
        self._add(self._stream.push(token))

    def end(self, truncated: bool) -> str:
        """Return the whole answer. `truncated` means that the model did not end it."""
        self._add(self._stream.flush(truncated))
        answer = "".join(self.pieces)
        print("" if self._live_print else answer, flush=True)
        return answer

    def _add(self, piece: str) -> None:
        self.pieces.append(piece)
        if self._live_print:
            print(piece, end="", flush=True)


def _enable_line_editing() -> None:
    """Give `input` a history and editing keys, if Python was built with readline."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")


def _read_line(prompt: str) -> str | None:
    """Return the next line, or None at end of input. Ctrl-C discards the line being typed."""
    while True:
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()


def _print_status(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
