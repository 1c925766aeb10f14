"""A terminal chat that works like the board's host program: answers go to stdout, status lines to stderr."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from axzoo.core.errors import AxzooError
from axzoo.runtime.generate import Generation, Sampler, generate
from axzoo.runtime.geometry import Geometry
from axzoo.runtime.model import Model
from axzoo.runtime.prompting import ChatTokenizer, Encode, TextStream
from axzoo.tokenizer.chat_template import Message


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

    def ask(self, question: str) -> Generation:
        """Return the answer to a question that follows the turns so far. Call `remember` to keep it as a turn.

        Raises AxzooError when the tokenizer rejects the question. Iterating over the answer raises AxzooError when the
        prompt does not fit the context.
        """
        ids = self._encode([*self._system, *self._turns, {"role": "user", "content": question}])
        return generate(self._model, ids, self._sampler, self._eos, self._max_tokens)

    def remember(self, question: str, answer: str) -> None:
        """Add a question and its answer to the conversation."""
        self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Forget all turns."""
        self._turns = []
        self._model.reset()


def print_geometry(geometry: Geometry) -> None:
    """Print what the board's host program prints after loading."""
    _print_status(f"max_token_len : {geometry.max_token_len}")
    _print_status(f"kv_cache_size : {geometry.kv_cache_size}, kv_cache_num: {geometry.kv_cache_num}")
    _print_status(f"prefill_token_num : {geometry.prefill_token_num}")
    _print_status("LLM init ok")


@dataclass(frozen=True)
class Terminal:
    """Prints answers and reads prompts. With `live_print`, an answer is printed as it is generated; otherwise whole."""

    chat: Chat
    tokenizer: ChatTokenizer
    live_print: bool

    def answer(self, question: str) -> None:
        """Print the answer, then add question and answer to the conversation. Ctrl-C ends the answer.

        Raises AxzooError when the question cannot be encoded or does not fit the context.
        """
        generation = self.chat.ask(question)
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
        self.chat.remember(question, printer.end(truncated=reason != "eos"))
        _print_status(f"\nhit {reason},avg {generation.tokens_per_second:.2f} token/s\n")
        if reason == "context full":
            _print_status("the context is full: ask shorter questions, reset, or build with a larger kv_cache_len")

    def run(self) -> None:
        """Read prompts until `q` or end of input; `reset` clears the conversation. A failed prompt prints its error."""
        _enable_line_editing()
        print('Type "q" to exit, Ctrl+c to stop current running', flush=True)
        while (line := _read_line()) is not None and line.strip() != "q":
            if line.strip() == "reset":
                self.chat.reset()
            elif line.strip():
                self._try_answer(line)

    def _try_answer(self, question: str) -> None:
        try:
            self.answer(question)
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


def _read_line() -> str | None:
    """Return the next line, or None at end of input. Ctrl-C discards the line being typed."""
    while True:
        try:
            return input(">> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()


def _print_status(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
