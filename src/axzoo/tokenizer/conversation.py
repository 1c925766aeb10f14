"""A conversation as the tokenizer server's multi-user protocol tells it: one question at a time, and what of the prompt
is new since the last answer."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.local import LocalTokenizer

_QUESTION = {"role": "user", "content": "?"}


def turn_end_id(tokenizer: LocalTokenizer, chat: bool) -> int | None:
    """What the chat template puts after an answer: the first of `eos_token_ids` there, else the first special token.
    Without a template, or where it puts none, the eos_token, else the first of `eos_token_ids`.

    Llama-3 and Phi-3 name another eos_token than ends their answers, and a folder with a tokenizer alone has no
    generation_config.json to say so.
    """
    if chat:
        written = _written_after_answer(tokenizer)
        for ends in (tokenizer.eos_token_ids, [index for index in written if _is_special(tokenizer, index)]):
            if found := [index for index in written if index in ends]:
                return found[0]
    eos = tokenizer.eos_token_id
    return eos if eos is not None else next(iter(tokenizer.eos_token_ids), None)


def _written_after_answer(tokenizer: LocalTokenizer) -> list[int]:
    """What two conversations that differ in the answer alone have in common behind it."""
    try:
        one, other = (
            tokenizer.encode_chat([_QUESTION, {"role": "assistant", "content": answer}], add_generation_prompt=False)
            for answer in ("!", "a")
        )
    except AxzooError:
        return []
    pairs = zip(reversed(one), reversed(other), strict=False)
    return [index for index, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)][::-1]


def _is_special(tokenizer: LocalTokenizer, index: int) -> bool:
    return tokenizer.decode([index]) != tokenizer.decode([index], skip_special_tokens=False)


MAX_CHARACTERS = 1 << 18
"""Of all messages: far more than any board's context."""

ChatIds = Callable[[Sequence[Message], bool], list[int]]
"""Messages, and whether the assistant's turn is opened after them -> token ids."""


def chat_ids(tokenizer: LocalTokenizer, chat: bool) -> ChatIds:
    """How conversations become ids: by the chat template, or as one running text."""
    if chat:
        return tokenizer.encode_chat
    return lambda messages, _: tokenizer.encode("".join(message["content"] for message in messages))


@dataclass(frozen=True)
class Conversation:
    """Answered questions, perhaps a question after them, and the ids that the host has been told (uint32)."""

    messages: tuple[Message, ...] = ()
    told: array[int] = field(default_factory=lambda: array("I"))

    def ask(self, text: str, last_reply: str | None, ids_of: ChatIds) -> tuple[Conversation, list[int], list[int]]:
        """The conversation with one more question, its prompt, and the end of that prompt which is new to a host that
        holds the prompts and the answer so far.

        A question without an answer is dropped: the host stopped it, and templates refuse two questions in a row.
        Raises AxzooError when it becomes too long, or the template refuses it.
        """
        answered, told = self._answered(last_reply, ids_of)
        messages = (*answered, {"role": "user", "content": text})
        if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
            raise AxzooError(f"the conversation has more than {MAX_CHARACTERS} characters: reset it")
        prompt = ids_of(messages, True)
        return Conversation(messages, array("I", prompt)), prompt, prompt[_common(told, prompt) :]

    def _answered(self, last_reply: str | None, ids_of: ChatIds) -> tuple[tuple[Message, ...], Sequence[int]]:
        if not self.messages or self.messages[-1]["role"] != "user":
            return self.messages, self.told
        if last_reply is None:
            return self.messages[:-1], self.told
        answered = (*self.messages, {"role": "assistant", "content": last_reply})
        return answered, ids_of(answered, False)


def new_conversation(system_prompt: str) -> Conversation:
    """One that holds the system's message, if there is one, and of which the host has been told nothing."""
    if len(system_prompt) > MAX_CHARACTERS:
        raise AxzooError(f"the system prompt has more than {MAX_CHARACTERS} characters: shorten it")
    return Conversation(({"role": "system", "content": system_prompt},) if system_prompt else ())


def introduced(conversation: Conversation, ids_of: ChatIds) -> Conversation:
    """The same, when the host has been told its messages so far: nothing, where the template writes the system's
    message only together with a question."""
    try:
        return replace(conversation, told=array("I", ids_of(conversation.messages, False)))
    except AxzooError:
        return conversation


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
