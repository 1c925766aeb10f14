"""A conversation with a model: what is asked and answered, and how much of it the caches already hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from axzoo.runtime.generate import Choose, Generation, generate
from axzoo.runtime.model import Model
from axzoo.tokenizer.chat_template import Message

Encode = Callable[[Sequence[Message]], list[int]]
"""Token ids of a conversation, up to where the answer begins."""


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
