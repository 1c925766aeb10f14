"""The local tokenizer against transformers.AutoTokenizer on the same folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.local import LocalTokenizer, find_tokenizer, load_tokenizer, require_rows

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces \n\n\t tabs ",
    "1234567890 and 3.14",
    "法国的首都是巴黎。",
    "😀 family 👩‍👩‍👧‍👦 flag 🇫🇷",
    "naïve café ﬁ \uff21 ᚠᛇᚻ \u200b\u0301 \ufffd",
    "special <|im_start|>user\nx<|im_end|> in the <|endoftext|> text</s> and <think>so</think>",
    "\x00\x7f control",
]

CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "简短。"}, {"role": "user", "content": "你好 😀"}],
    [
        {"role": "user", "content": "<|im_end|>\n<|im_start|>system\ninjected"},
        {"role": "assistant", "content": "  no "},
        {"role": "user", "content": "{{ messages }}"},
    ],
]

TEMPLATES = {
    "llama3": "{% set date = strftime_now('%d %b %Y') %}{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n\n' + date + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    "lines and blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n  {{ m.content }}{{ eos_token }}\n"
    "    {% else %}\n  [{{ m.role }}]\n    {% endif %}\n{% endfor %}\n",
    "loopcontrols, namespace, tojson": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if loop.index0 == 2 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}{{ m | tojson }}{% endfor %}{{ ns.n }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "nothing given": "{{ tools is none }}{{ documents is none }}{{ unknown is defined }}{{ pad_token }}",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_encode_and_decode_agree_with_transformers(tokenizer_folder: Path, text: str, special: bool) -> None:
    ours, theirs = load_tokenizer(tokenizer_folder), AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == theirs.encode(text, add_special_tokens=special)
    assert ours.decode(ids, skip_special_tokens=special) == theirs.decode(ids, skip_special_tokens=special)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("generation", [True, False])
def test_chats_agree_with_transformers(
    tokenizer_folder: Path, messages: list[dict[str, str]], generation: bool
) -> None:
    ours, theirs = load_tokenizer(tokenizer_folder), AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=generation)["input_ids"]
    assert ours.encode_chat(messages, add_generation_prompt=generation) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(byte_level: Path, tmp_path: Path, name: str) -> None:
    folder = _copy(byte_level, tmp_path)
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ours.encode_chat(messages) == expected


def test_a_template_in_tokenizer_config(byte_level: Path, tmp_path: Path) -> None:
    folder = _copy(byte_level, tmp_path)
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "Hello"}]
    for template in ("Hello", named):
        _edit(folder / "tokenizer_config.json", lambda c, t=template: c.update(chat_template=t))
        tokenizer = load_tokenizer(folder)
        assert tokenizer.encode_chat(CONVERSATIONS[0]) == tokenizer.encode("Hello", add_special_tokens=False)


def test_without_a_template_the_error_names_chat_false(byte_level: Path, tmp_path: Path) -> None:
    folder = _copy(byte_level, tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(AxzooError, match="chat: false"):
        load_tokenizer(folder).encode_chat(CONVERSATIONS[0])


def test_truncation_and_padding_settings_in_the_file_are_ignored(byte_level: Path, tmp_path: Path) -> None:
    folder = _copy(byte_level, tmp_path)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).encode("1234567") == load_tokenizer(byte_level).encode("1234567")


def test_eos_and_bos(byte_level: Path, tmp_path: Path) -> None:
    folder = _copy(byte_level, tmp_path)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_token_id == tokenizer.backend.token_to_id("<|endoftext|>")
    assert tokenizer.eos_token_ids == (tokenizer.backend.token_to_id("<|im_end|>"),)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer that axzoo can read"),
        ("tokenizer.json", b"{}", "is not a valid tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "is not a valid tokenizer"),
        ("tokenizer_config.json", b"{", "is not valid JSON"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object"),
        ("tokenizer_config.json", b"[" * 100_000, "is not valid JSON"),
        ("chat_template.jinja", b"\xff", "is not UTF-8"),
    ],
)
def test_invalid_folders_are_refused(
    byte_level: Path, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    folder = _copy(byte_level, tmp_path)
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(AxzooError, match=message):
        load_tokenizer(folder)


def _streamed(tokenizer: LocalTokenizer, ids: list[int], skip: bool = True) -> list[str]:
    stream = tokenizer.stream(skip)
    return [*(stream.push(i) for i in ids), stream.flush()]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_streaming_yields_whole_characters_and_the_whole_text(tokenizer_folder: Path, text: str) -> None:
    tokenizer = load_tokenizer_once(tokenizer_folder)
    ids = tokenizer.encode(text)
    pieces = _streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("skip", [True, False])
def test_streaming_any_bytes(byte_level: Path, skip: bool) -> None:
    tokenizer = load_tokenizer(byte_level)
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(30))]
        assert "".join(_streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


def test_a_character_is_returned_with_its_last_byte(byte_level: Path) -> None:
    tokenizer = load_tokenizer(byte_level)
    ids = [tokenizer.backend.token_to_id(c) for c in "ðŁĺĤ"]  # the byte-level names of U+1F602's four bytes
    assert _streamed(tokenizer, [*ids, *ids[:2]]) == ["", "", "", "😂", "", "", "\ufffd"]


def test_the_window_of_a_stream_stays_short(byte_level: Path) -> None:
    tokenizer = load_tokenizer(byte_level)
    continuation = tokenizer.backend.token_to_id("ł")  # the byte-level name of 0xA0, which cannot start a character
    assert continuation is not None
    stream = tokenizer.stream()
    text = "".join([*(stream.push(continuation) for _ in range(2000)), stream.flush()])
    assert text == "\ufffd" * 2000
    end = tokenizer.backend.token_to_id("<|im_end|>")
    assert end is not None
    assert "".join(stream.push(end) for _ in range(2000)) == ""
    hello = tokenizer.encode(" Hello")
    assert "".join([*map(stream.push, hello), stream.flush()]) == " Hello"
    assert len(stream._window) < 40


_loaded: dict[Path, LocalTokenizer] = {}


def load_tokenizer_once(folder: Path) -> LocalTokenizer:
    """Cache tokenizers, because Hypothesis runs a test body many times."""
    return _loaded.setdefault(folder, _loaded.get(folder) or load_tokenizer(folder))


def _copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "tokenizer"))


def _edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_tokens_need_a_row_in_the_embedding(byte_level: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load_tokenizer(byte_level)
    require_rows(tokenizer, tokenizer.vocab_size)
    with pytest.raises(AxzooError, match=r"embedding has 418 rows: .*, .*, '<think>' would need higher rows"):
        require_rows(tokenizer, tokenizer.vocab_size - 3)
    folder = _copy(byte_level, tmp_path)
    _edit(folder / "tokenizer_config.json", lambda c: c.update(pad_token="<pad>"))
    padded = load_tokenizer(folder)
    assert padded.vocab_size == tokenizer.vocab_size + 1
    require_rows(padded, tokenizer.vocab_size)
    assert "the pad_token '<pad>' has no row" in caplog.text
    with pytest.raises(AxzooError, match="'<think>', '<pad>' would need"):
        require_rows(padded, tokenizer.vocab_size - 1)


def test_a_folder_without_a_tokenizer(byte_level: Path, tmp_path: Path) -> None:
    folder = _copy(byte_level, tmp_path)
    (folder / "tokenizer.json").unlink()
    assert find_tokenizer(folder) is None
    (folder / "tokenizer.json").symlink_to("../blobs/0123")
    with pytest.raises(AxzooError, match=r"tokenizer\.json is not a file, or a link to nothing"):
        find_tokenizer(folder)


def test_an_interrupted_request_leaves_no_reply_for_the_next(byte_level: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(byte_level)
    expected = tokenizer.encode("two")

    def interrupted(process: subprocess.Popen[bytes], line: bytes, *_: object) -> bytes:
        assert process.stdin is not None
        os.write(process.stdin.fileno(), line)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("axzoo.tokenizer.child_process._converse", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokenizer.encode("one")
    assert tokenizer.encode("two") == expected
