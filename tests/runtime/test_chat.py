"""Turns behind each other, with the caches kept, against a model that sees each conversation whole."""

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

ROOMY = replace(EXACT, kv_cache_len=63, last_kv_cache_len=(4, 8, 12, 16, 20))


def _greedy(logits: Logits, _answer: Sequence[int]) -> int:
    return int(logits.argmax())


@pytest.fixture
def model(build_bundle: Callable[[Recipe], Path]) -> Model:
    return load_model(build_bundle(ROOMY))


@pytest.fixture(scope="module")
def tokenizer(build_bundle: Callable[[Recipe], Path]) -> LocalTokenizer:
    return load_tokenizer(build_bundle(ROOMY) / "tokenizer")


def _whole(oracle: Oracle, ids: list[int], tokens: int) -> list[int]:
    answer: list[int] = []
    for _ in range(tokens):
        answer.append(int(oracle.logits(ids + answer).argmax()))
    return answer


def _read(model: Model) -> list[int]:
    """Counts the tokens of every prompt the model is given from now on."""
    counts: list[int] = []
    prefill = model.prefill

    def counting(ids: Sequence[int]) -> Logits:
        counts.append(len(ids))
        return prefill(ids)

    model.prefill = counting  # type: ignore[assignment,method-assign]
    return counts


def test_every_turn_continues_the_conversation(model: Model, tokenizer: LocalTokenizer, oracle: Oracle) -> None:
    chat = Chat(model, tokenizer.encode_chat, _greedy, frozenset(), system="s", max_tokens=3)
    counts = _read(model)
    written = "<system>s"
    for question in ("hi", "who", "ok"):
        written += f"<user>{question}"
        ids = list(chat.ask(question))
        assert ids == _whole(oracle, tokenizer.encode(written), 3)
        # the answer as it might be said again: another text tokenizes to other ids, which the caches do not hold
        chat.remember(question, "yes")
        written += "<assistant>yes"
    assert counts == [5, 8, 7]  # <assistant>yes<user>who: what is new, not what the caches hold


def test_an_answer_remembered_as_it_was_is_not_read_again(model: Model, oracle: Oracle) -> None:
    """Ids for text, so that nothing is lost between them."""

    def encode(messages: Sequence[Message]) -> list[int]:
        return [int(number) for message in messages for number in message["content"].split()]

    chat = Chat(model, encode, _greedy, frozenset(), max_tokens=4)
    counts = _read(model)
    first = list(chat.ask("5 6 7"))
    chat.remember("5 6 7", " ".join(map(str, first)))
    second = list(chat.ask("8 9"))
    assert second == _whole(oracle, [5, 6, 7, *first, 8, 9], 4)
    assert counts == [3, 3]  # the first answer's last token was never read by the model


def test_a_question_asked_again_is_answered_alike(model: Model, tokenizer: LocalTokenizer) -> None:
    """Without `remember` the conversation stays; one token at least is read."""
    chat = Chat(model, tokenizer.encode_chat, _greedy, frozenset(), max_tokens=3)
    counts = _read(model)
    assert list(chat.ask("hi")) == list(chat.ask("hi"))
    assert counts == [3, 1]


def test_reset_begins_anew(model: Model, tokenizer: LocalTokenizer) -> None:
    chat = Chat(model, tokenizer.encode_chat, _greedy, frozenset(), system="s", max_tokens=3)
    first = list(chat.ask("hi"))
    chat.remember("hi", "yes")
    chat.reset()
    assert model.used == 0
    assert list(chat.ask("hi")) == first


def test_a_question_that_does_not_fit_leaves_the_conversation_alone(
    model: Model, tokenizer: LocalTokenizer, oracle: Oracle
) -> None:
    chat = Chat(model, tokenizer.encode_chat, _greedy, frozenset(), max_tokens=3)
    list(chat.ask("hi"))
    chat.remember("hi", "yes")
    with pytest.raises(AxzooError, match=r"has 84 tokens, .* room for 60 behind the 3 read already: .* reset"):
        list(chat.ask("x" * 76))
    with pytest.raises(AxzooError, match="not UTF-8"):
        chat.ask("\udcff")
    assert list(chat.ask("ok")) == _whole(oracle, tokenizer.encode("<user>hi<assistant>yes<user>ok"), 3)


def test_an_answer_torn_by_ctrl_c_does_not_spoil_the_next(
    model: Model, tokenizer: LocalTokenizer, oracle: Oracle
) -> None:
    def impatient(logits: Logits, answer: Sequence[int]) -> int:
        if len(answer) == 2 and not chat.torn:  # type: ignore[attr-defined]
            chat.torn = True  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return _greedy(logits, answer)

    chat = Chat(model, tokenizer.encode_chat, impatient, frozenset(), max_tokens=3)
    chat.torn = False  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("hi"))
    chat.remember("hi", "y")
    assert list(chat.ask("ok")) == _whole(oracle, tokenizer.encode("<user>hi<assistant>y<user>ok"), 3)
