"""A chat on the terminal, as the board's host program holds it: answers on stdout, what it says of itself on stderr."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from axzoo.core.errors import AxzooError
from axzoo.runtime.generate import Choose, Generation, generate
from axzoo.runtime.geometry import Geometry
from axzoo.runtime.model import Model
from axzoo.runtime.prompting import Encode, Prompting, Stream
from axzoo.tokenizer.chat_template import Message


class Chat:
    """Asks one question after another. The caches are kept from turn to turn: only what they lack is read.

    `system` is the system message, none if empty.
    """

    def __init__(
        self,
        model: Model,
        encode: Encode,
        choose: Choose,
        eos: AbstractSet[int],
        system: str = "",
        max_tokens: int | None = None,
    ) -> None:
        self._model = model
        self._encode = encode
        self._choose = choose
        self._eos = eos
        self._opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self._max_tokens = max_tokens
        self._turns: list[Message] = []

    def ask(self, question: str) -> Generation:
        """The answer to a question behind the turns so far; `remember` makes it one of them.

        Raises AxzooError when the tokenizer refuses the question; the answer raises it when the question does not fit.
        """
        ids = self._encode([*self._opening, *self._turns, {"role": "user", "content": question}])
        return generate(self._model, ids, self._choose, self._eos, self._max_tokens)

    def remember(self, question: str, answer: str) -> None:
        self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Forgets all turns."""
        self._turns = []
        self._model.reset()


def tell_geometry(geometry: Geometry) -> None:
    """The lines of the board's host after loading."""
    _tell(f"max_token_len : {geometry.max_token_len}")
    _tell(f"kv_cache_size : {geometry.kv_cache_size}, kv_cache_num: {geometry.kv_cache_num}")
    _tell(f"prefill_token_num : {geometry.prefill_token_num}")
    _tell("LLM init ok")


@dataclass(frozen=True)
class Terminal:
    """`live`: print an answer while it comes, else when it is whole."""

    chat: Chat
    prompting: Prompting
    live: bool

    def answer(self, question: str) -> None:
        """Prints the answer and makes both part of the conversation. Ctrl-C ends the answer.

        Raises AxzooError when the question cannot be encoded or does not fit.
        """
        generation = self.chat.ask(question)
        printer = _Printer(self.prompting.stream(), self.live)
        stop = "ctrl+c"
        try:
            for token in generation:
                if not printer.pieces:
                    _tell(f"ttft: {generation.ttft * 1e3:.2f} ms")
                printer.push(token)
            stop = str(generation.stop)
            if not printer.pieces:
                _tell(f"ttft: {generation.ttft * 1e3:.2f} ms")
        except KeyboardInterrupt:
            pass
        self.chat.remember(question, printer.end(cut=stop != "eos"))
        _tell(f"\nhit {stop},avg {generation.tokens_per_second:.2f} token/s\n")
        if stop == "context full":
            _tell("the context is full: say less at a time, reset, or build with a larger kv_cache_len")

    def talk(self) -> None:
        """Asks for prompts until `q` or the end of the input; `reset` forgets the conversation. What goes wrong with a
        prompt is said, and the next one asked for."""
        _edit_lines()
        print('Type "q" to exit, Ctrl+c to stop current running', flush=True)
        while (line := _read_line()) is not None and line.strip() != "q":
            if line.strip() == "reset":
                self.chat.reset()
            elif line.strip():
                self._try(line)

    def _try(self, question: str) -> None:
        try:
            self.answer(question)
        except AxzooError as error:
            _tell(f"axzoo: {error}")
        except KeyboardInterrupt:  # while the question was encoded
            _tell("")


class _Printer:
    """Prints tokens as text: `pieces` are what came of them."""

    def __init__(self, stream: Stream, live: bool) -> None:
        self._stream = stream
        self._live = live
        self.pieces: list[str] = []

    def push(self, token: int) -> None:
        self._add(self._stream.push(token))

    def end(self, cut: bool) -> str:
        """The whole answer. `cut`: it has not ended by itself."""
        self._add(self._stream.flush(cut))
        answer = "".join(self.pieces)
        print("" if self._live else answer, flush=True)
        return answer

    def _add(self, piece: str) -> None:
        self.pieces.append(piece)
        if self._live:
            print(piece, end="", flush=True)


def _edit_lines() -> None:
    """Gives `input` a history and keys that edit, where Python was built with readline."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")


def _read_line() -> str | None:
    """A line, None at the end of the input. Ctrl-C discards what was typed."""
    while True:
        try:
            return input(">> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
