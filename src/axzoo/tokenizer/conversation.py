"""Conversations of the multi-user tokenizer protocol: one question at a time, with the new part of each prompt."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.end_tokens import turn_end_id
from axzoo.tokenizer.local import LocalTokenizer
from axzoo.tokenizer.tokenizer_folder import ChatEncoder


def end_id(tokenizer: LocalTokenizer, chat: bool) -> int | None:
    """Return the id of the one token that a host program is told to end an answer at, or None if it is unknown.

    With `chat`, this is the token that the chat template writes after an answer. Without it, or if it writes none, it
    is the eos_token, else the first of `eos_token_ids`.

    The eos_token alone is not enough: Llama-3 and Phi-3 end answers with another token.
    """
    turn_end = turn_end_id(tokenizer) if chat else None
    if turn_end is not None:
        return turn_end
    eos = tokenizer.eos_token_id
    return eos if eos is not None else next(iter(tokenizer.eos_token_ids), None)


MAX_CHARACTERS = 1 << 18
"""Limit for all messages together, far above the context length of any board."""


def chat_encoder(tokenizer: LocalTokenizer, chat: bool) -> ChatEncoder:
    """Return the function that encodes conversations: with the chat template, or as concatenated text."""
    if chat:
        return tokenizer.encode_chat
    return lambda messages, _: tokenizer.encode("".join(message["content"] for message in messages))


@dataclass(frozen=True)
class Conversation:
    """Questions and answers, possibly with an open question at the end. `sent` are the ids sent to the host."""

    messages: tuple[Message, ...] = ()
    sent: array[int] = field(default_factory=lambda: array("I"))

    def ask(self, text: str, last_reply: str | None, encode: ChatEncoder) -> tuple[Conversation, list[int], list[int]]:
        """Add a question. Return the new conversation, its prompt, and the part of the prompt that the host lacks.

        The host is assumed to hold the ids sent so far and the last reply. A question that got no reply is dropped,
        because the host has stopped it and templates reject two questions in a row.
        Raises AxzooError when the conversation becomes too long, or the template rejects it.
        """
        answered, sent = self._answered(last_reply, encode)
        messages = (*answered, {"role": "user", "content": text})
        if len(text) > MAX_CHARACTERS:
            raise AxzooError(f"the text has more than {MAX_CHARACTERS} characters: shorten it")
        if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
            raise AxzooError(f"the conversation has more than {MAX_CHARACTERS} characters: reset it")
        prompt = encode(messages, True)
        return Conversation(messages, array("I", prompt)), prompt, prompt[_common_prefix_length(sent, prompt) :]

    def _answered(self, last_reply: str | None, encode: ChatEncoder) -> tuple[tuple[Message, ...], Sequence[int]]:
        if not self.messages or self.messages[-1]["role"] != "user":
            return self.messages, self.sent
        if last_reply is None:
            return self.messages[:-1], self.sent
        answered = (*self.messages, {"role": "assistant", "content": last_reply})
        return answered, encode(answered, False)


def new_conversation(system_prompt: str) -> Conversation:
    """Start a conversation with a system message, if it is not empty. Nothing has been sent to the host yet.

    Raises AxzooError when the system message is too long.
    """
    if len(system_prompt) > MAX_CHARACTERS:
        raise AxzooError(f"the system prompt has more than {MAX_CHARACTERS} characters: shorten it")
    return Conversation(({"role": "system", "content": system_prompt},) if system_prompt else ())


def mark_sent(conversation: Conversation, encode: ChatEncoder) -> Conversation:
    """Mark the messages as sent to the host, if the template can render them without a question."""
    try:
        return replace(conversation, sent=array("I", encode(conversation.messages, False)))
    except AxzooError:
        return conversation


def _common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
