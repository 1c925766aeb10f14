"""What the host is told of a prompt that it already holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.conversation import MAX_CHARACTERS, Conversation, chat_ids, introduced, new_conversation
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


def test_each_question_brings_what_is_new(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    ids_of = chat_ids(tokenizer, True)
    system = {"role": "system", "content": "Be brief."}
    conversation = introduced(new_conversation("Be brief."), ids_of)
    assert list(conversation.told) == tokenizer.encode_chat([system], add_generation_prompt=False)
    conversation, prompt, diff = conversation.ask("法国?", None, ids_of)
    assert prompt == tokenizer.encode_chat([system, _user("法国?")])
    assert prompt == [*tokenizer.encode_chat([system], add_generation_prompt=False), *diff]
    conversation, prompt, diff = conversation.ask("And?", "巴黎 😀", ids_of)
    messages = [system, _user("法国?"), _assistant("巴黎 😀")]
    assert prompt == tokenizer.encode_chat([*messages, _user("And?")])
    assert prompt == [*tokenizer.encode_chat(messages, add_generation_prompt=False), *diff]


def test_without_an_introduction_everything_is_new(byte_level: Path) -> None:
    ids_of = chat_ids(load_tokenizer(byte_level), True)
    _, prompt, diff = new_conversation("Be brief.").ask("Hello", None, ids_of)
    assert diff == prompt


def test_a_template_that_closes_what_it_writes(byte_level: Path, tmp_path: Path) -> None:
    """Phi-3's puts an end of text after an answer, and no longer once a question follows."""
    tokenizer = _with_template(byte_level, tmp_path, PHI3)
    ids_of = chat_ids(tokenizer, True)
    conversation, _, _ = Conversation().ask("a", None, ids_of)
    _, prompt, diff = conversation.ask("c", "b", ids_of)
    assert diff == tokenizer.encode("<|im_start|>user\nc<|im_end|><|im_start|>assistant\n")
    assert prompt[-len(diff) :] == diff


def test_an_unanswered_question_is_dropped(byte_level: Path, tmp_path: Path) -> None:
    tokenizer = _with_template(byte_level, tmp_path, ALTERNATING)
    ids_of = chat_ids(tokenizer, True)
    conversation, _, _ = Conversation().ask("first", None, ids_of)
    _, prompt, diff = conversation.ask("second", None, ids_of)
    assert prompt == tokenizer.encode("[second]")
    assert prompt[-len(diff) :] == diff
    assert len(diff) < len(prompt)


def test_an_answer_to_nothing_is_dropped(byte_level: Path) -> None:
    tokenizer = load_tokenizer(byte_level)
    _, prompt, _ = Conversation().ask("Hello", "said before the reset", chat_ids(tokenizer, True))
    assert prompt == tokenizer.encode_chat([_user("Hello")])


def test_a_template_without_a_place_for_the_system(byte_level: Path, tmp_path: Path) -> None:
    tokenizer = _with_template(byte_level, tmp_path, ALTERNATING)
    conversation = introduced(new_conversation("Be brief."), chat_ids(tokenizer, True))
    assert list(conversation.told) == []
    with pytest.raises(AxzooError, match="roles must alternate"):
        conversation.ask("Hello", None, chat_ids(tokenizer, True))


def test_without_chat_the_texts_run_on(byte_fallback: Path) -> None:
    tokenizer = load_tokenizer(byte_fallback)
    ids_of = chat_ids(tokenizer, False)
    conversation, prompt, _ = Conversation().ask("The capital", None, ids_of)
    assert prompt == tokenizer.encode("The capital")
    _, prompt, diff = conversation.ask(" Yes", " is Paris.", ids_of)
    assert prompt == tokenizer.encode("The capital is Paris. Yes")
    assert prompt[-len(diff) :] == diff


def test_conversations_end(byte_level: Path) -> None:
    ids_of = chat_ids(load_tokenizer(byte_level), True)
    conversation, _, _ = Conversation().ask("x" * (MAX_CHARACTERS - 1), None, ids_of)
    with pytest.raises(AxzooError, match="reset it"):
        conversation.ask("y", "z", ids_of)
    with pytest.raises(AxzooError, match="system prompt"):
        new_conversation("x" * (MAX_CHARACTERS + 1))
