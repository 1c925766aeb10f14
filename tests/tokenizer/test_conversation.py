"""The part of each prompt that is new to the host."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.conversation import MAX_CHARACTERS, Conversation, chat_encoder, mark_sent, new_conversation
from axzoo.tokenizer.local import LocalTokenizer, load_tokenizer

PHI3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['content'] }}]{% endfor %}"
)


def _with_template(folder: Path, to: Path, template: str) -> LocalTokenizer:
    copy = Path(shutil.copytree(folder, to / "tokenizer"))
    (copy / "chat_template.jinja").write_text(template)
    return load_tokenizer(copy)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_each_question_returns_the_new_part_of_the_prompt(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    encode = chat_encoder(tokenizer, True)
    system = {"role": "system", "content": "Be brief."}
    conversation = mark_sent(new_conversation("Be brief."), encode)
    assert list(conversation.sent) == tokenizer.encode_chat([system], add_generation_prompt=False)
    conversation, prompt, diff = conversation.ask("法国?", None, encode)
    assert prompt == tokenizer.encode_chat([system, _user("法国?")])
    assert prompt == [*tokenizer.encode_chat([system], add_generation_prompt=False), *diff]
    conversation, prompt, diff = conversation.ask("And?", "巴黎 😀", encode)
    messages = [system, _user("法国?"), _assistant("巴黎 😀")]
    assert prompt == tokenizer.encode_chat([*messages, _user("And?")])
    assert prompt == [*tokenizer.encode_chat(messages, add_generation_prompt=False), *diff]


def test_the_whole_prompt_is_new_if_nothing_was_sent(byte_level: Path) -> None:
    encode = chat_encoder(load_tokenizer(byte_level), True)
    _, prompt, diff = new_conversation("Be brief.").ask("Hello", None, encode)
    assert diff == prompt


def test_a_template_that_ends_conversations_with_a_token(byte_level: Path, tmp_path: Path) -> None:
    """Phi-3 writes an end-of-text token after an answer, but not if a question follows."""
    tokenizer = _with_template(byte_level, tmp_path, PHI3)
    encode = chat_encoder(tokenizer, True)
    conversation, _, _ = Conversation().ask("a", None, encode)
    _, prompt, diff = conversation.ask("c", "b", encode)
    assert diff == tokenizer.encode("<|im_start|>user\nc<|im_end|><|im_start|>assistant\n")
    assert prompt[-len(diff) :] == diff


def test_an_unanswered_question_is_dropped(byte_level: Path, tmp_path: Path) -> None:
    tokenizer = _with_template(byte_level, tmp_path, ALTERNATING)
    encode = chat_encoder(tokenizer, True)
    conversation, _, _ = Conversation().ask("first", None, encode)
    _, prompt, diff = conversation.ask("second", None, encode)
    assert prompt == tokenizer.encode("[second]")
    assert prompt[-len(diff) :] == diff
    assert len(diff) < len(prompt)


def test_an_answer_without_a_question_is_dropped(byte_level: Path) -> None:
    tokenizer = load_tokenizer(byte_level)
    _, prompt, _ = Conversation().ask("Hello", "said before the reset", chat_encoder(tokenizer, True))
    assert prompt == tokenizer.encode_chat([_user("Hello")])


def test_a_template_without_a_system_role(byte_level: Path, tmp_path: Path) -> None:
    tokenizer = _with_template(byte_level, tmp_path, ALTERNATING)
    conversation = mark_sent(new_conversation("Be brief."), chat_encoder(tokenizer, True))
    assert list(conversation.sent) == []
    with pytest.raises(AxzooError, match="roles must alternate"):
        conversation.ask("Hello", None, chat_encoder(tokenizer, True))


def test_without_chat_the_texts_are_concatenated(byte_fallback: Path) -> None:
    tokenizer = load_tokenizer(byte_fallback)
    encode = chat_encoder(tokenizer, False)
    conversation, prompt, _ = Conversation().ask("The capital", None, encode)
    assert prompt == tokenizer.encode("The capital")
    _, prompt, diff = conversation.ask(" Yes", " is Paris.", encode)
    assert prompt == tokenizer.encode("The capital is Paris. Yes")
    assert prompt[-len(diff) :] == diff


def test_conversations_have_a_limit(byte_level: Path) -> None:
    encode = chat_encoder(load_tokenizer(byte_level), True)
    conversation, _, _ = Conversation().ask("x" * (MAX_CHARACTERS - 1), None, encode)
    with pytest.raises(AxzooError, match="reset it"):
        conversation.ask("y", "z", encode)
    with pytest.raises(AxzooError, match="system prompt"):
        new_conversation("x" * (MAX_CHARACTERS + 1))
