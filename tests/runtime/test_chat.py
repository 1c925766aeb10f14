"""Conversations with cached turns against an oracle that reads each conversation from the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import EXACT, Oracle

from axzoo.core.errors import AxzooError
from axzoo.runtime.chat import Chat
from axzoo.runtime.model import Model, load_model
from axzoo.runtime.sampling import Logits
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.local import LocalTokenizer, load_tokenizer
from axzoo.weights.recipe import Recipe

LONG_CONTEXT = replace(EXACT, kv_cache_len=63, last_kv_cache_len=(4, 8, 12, 16, 20))


def _greedy(logits: Logits, _answer: Sequence[int]) -> int:
    return int(logits.argmax())


@pytest.fixture
def model(build_bundle: Callable[[Recipe], Path]) -> Model:
    return load_model(build_bundle(LONG_CONTEXT))


@pytest.fixture(scope="module")
def tokenizer(build_bundle: Callable[[Recipe], Path]) -> LocalTokenizer:
    return load_tokenizer(build_bundle(LONG_CONTEXT) / "tokenizer")


def _expected(oracle: Oracle, ids: list[int], tokens: int) -> list[int]:
    answer: list[int] = []
    for _ in range(tokens):
        answer.append(int(oracle.logits(ids + answer).argmax()))
    return answer


def _count_read_tokens(model: Model) -> list[int]:
    """Record the number of tokens of every prompt that the model reads from now on."""
    counts: list[int] = []
    prefill = model.prefill

    def counting(ids: Sequence[int]) -> Logits:
        counts.append(len(ids))
        return prefill(ids)

    model.prefill = counting  # type: ignore[assignment,method-assign]
    return counts


def test_every_turn_continues_the_conversation(model: Model, tokenizer: LocalTokenizer, oracle: Oracle) -> None:
    chat = Chat(model, tokenizer.encode_chat, _greedy, frozenset(), system="s", max_tokens=3)
    counts = _count_read_tokens(model)
    written = "<system>s"
    for question in ("hi", "who", "ok"):
        written += f"<user>{question}"
        ids = list(chat.ask(question))
        assert ids == _expected(oracle, tokenizer.encode(written), 3)
        # remember a different answer: its ids are not the cached ones
        chat.remember(question, "yes")
        written += "<assistant>yes"
    assert counts == [5, 8, 7]  # <assistant>yes<user>who: only the new tokens


def test_an_unchanged_answer_is_not_read_again(model: Model, oracle: Oracle) -> None:
    """Messages are written as ids, so that the answer round-trips exactly."""

    def encode(messages: Sequence[Message]) -> list[int]:
        return [int(number) for message in messages for number in message["content"].split()]

    chat = Chat(model, encode, _greedy, frozenset(), max_tokens=4)
    counts = _count_read_tokens(model)
    first = list(chat.ask("5 6 7"))
    chat.remember("5 6 7", " ".join(map(str, first)))
    second = list(chat.ask("8 9"))
    assert second == _expected(oracle, [5, 6, 7, *first, 8, 9], 4)
    assert counts == [3, 3]  # the last token of the first answer was sampled, but not read yet


def test_a_repeated_question_gets_the_same_answer(model: Model, tokenizer: LocalTokenizer) -> None:
    """Without `remember` the conversation does not grow. At least one token is always read."""
    chat = Chat(model, tokenizer.encode_chat, _greedy, frozenset(), max_tokens=3)
    counts = _count_read_tokens(model)
    assert list(chat.ask("hi")) == list(chat.ask("hi"))
    assert counts == [3, 1]


def test_reset_starts_a_new_conversation(model: Model, tokenizer: LocalTokenizer) -> None:
    chat = Chat(model, tokenizer.encode_chat, _greedy, frozenset(), system="s", max_tokens=3)
    first = list(chat.ask("hi"))
    chat.remember("hi", "yes")
    chat.reset()
    assert model.used == 0
    assert list(chat.ask("hi")) == first


def test_a_question_that_does_not_fit_leaves_the_conversation_unchanged(
    model: Model, tokenizer: LocalTokenizer, oracle: Oracle
) -> None:
    chat = Chat(model, tokenizer.encode_chat, _greedy, frozenset(), max_tokens=3)
    list(chat.ask("hi"))
    chat.remember("hi", "yes")
    with pytest.raises(AxzooError, match=r"has 84 tokens, 3 of them cached, but the context holds only 63: .* reset"):
        list(chat.ask("x" * 76))
    with pytest.raises(AxzooError, match="not valid UTF-8"):
        chat.ask("\udcff")
    assert list(chat.ask("ok")) == _expected(oracle, tokenizer.encode("<user>hi<assistant>yes<user>ok"), 3)


def test_an_answer_interrupted_by_ctrl_c_does_not_affect_the_next(
    model: Model, tokenizer: LocalTokenizer, oracle: Oracle
) -> None:
    def interrupt_once(logits: Logits, answer: Sequence[int]) -> int:
        if len(answer) == 2 and not chat.interrupted:  # type: ignore[attr-defined]
            chat.interrupted = True  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return _greedy(logits, answer)

    chat = Chat(model, tokenizer.encode_chat, interrupt_once, frozenset(), max_tokens=3)
    chat.interrupted = False  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("hi"))
    chat.remember("hi", "y")
    assert list(chat.ask("ok")) == _expected(oracle, tokenizer.encode("<user>hi<assistant>y<user>ok"), 3)
