"""`axzoo run` on a pseudo-terminal: input, output and Ctrl-C."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import EXACT, make_oracle, write_bundle

from axzoo.runtime.chat import Chat, Terminal
from axzoo.runtime.model import load_model
from axzoo.runtime.prompting import TokenizerChoice, open_tokenizer
from axzoo.runtime.sampling import Logits
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.local import load_tokenizer
from axzoo.weights.recipe import Recipe

LONG_CONTEXT = replace(EXACT, kv_cache_len=63, last_kv_cache_len=(4, 8, 12, 16, 20))
SLOW = ("--dynamic_load_axmodel_layer", "1")
ENDLESS = 4096
"""A context so long that an answer takes most of a minute and can be interrupted even on a busy machine."""


class Screen:
    """Runs `axzoo` on a pseudo-terminal."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.shown = ""
        self._from = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs inherit an ignored SIGINT
            os.execv(sys.executable, [sys.executable, "-m", "axzoo.cli", *arguments])

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, text: str) -> str:
        """Wait until `text` is shown; return the output between the previous wait and it."""
        end = time.monotonic() + 60
        while (found := self.shown.find(text, self._from)) < 0:
            assert time.monotonic() < end, f"no {text!r} in {self.shown!r}"
            assert self._read(), f"ended without {text!r}: {self.shown!r}"
        part = self.shown[self._from : found]
        self._from = found + len(text)
        return part

    def end(self) -> int:
        """Read all remaining output; return the exit status."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self.terminal)

    def _read(self) -> bool:
        ready, _, _ = select.select([self.terminal], [], [], 60)
        try:
            data = os.read(self.terminal, 65536) if ready else b""
        except OSError:  # the program has exited
            data = b""
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._decoder.decode(data))
        self.shown += text.replace("\r\n", "\n")
        return bool(data)


Start = Callable[..., Screen]


@pytest.fixture
def folder(build_bundle: Callable[[Recipe], Path]) -> Path:
    return build_bundle(LONG_CONTEXT)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("endless")
    write_bundle(make_oracle(ENDLESS), replace(LONG_CONTEXT, kv_cache_len=ENDLESS - 1), folder)
    return folder


@pytest.fixture
def start() -> Iterator[Start]:
    screens: list[Screen] = []

    def start_screen(folder: Path, *arguments: str) -> Screen:
        screens.append(Screen(["run", str(folder), "--greedy", *arguments]))
        return screens[-1]

    yield start_screen
    for screen in screens:
        screen.close()


def _single_answer(folder: Path, prompt: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "axzoo.cli", "run", str(folder), "--greedy", "--prompt", prompt, *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


def _letters(text: str) -> str:
    """Drop characters that the terminal may interpret."""
    return "".join(filter(str.isalnum, text))


def test_a_conversation(folder: Path, start: Start) -> None:
    screen = start(folder, "--max-tokens", "4")
    loading = screen.wait_for('Type "q" to exit, Ctrl+c to stop current running\n')
    assert "loading" in loading and "6/6" in loading
    assert "LLM init ok" in loading
    screen.wait_for(">> ")
    screen.type("hi\n")
    screen.wait_for("ttft: ")
    first = screen.wait_for("hit max tokens,avg ")
    screen.wait_for(" token/s\n")
    screen.wait_for(">> ")
    screen.type("\n")
    screen.wait_for(">> ")
    screen.type("reset\n")
    screen.wait_for(">> ")
    screen.type("hi\n")
    screen.wait_for("ttft: ")
    again = screen.wait_for("hit max tokens,avg ")
    assert again.partition("ms\n")[2] == first.partition("ms\n")[2]
    screen.wait_for(">> ")
    screen.type("q\n")
    assert screen.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(endless: Path, start: Start) -> None:
    screen = start(endless, *SLOW)
    screen.wait_for(">> ")
    screen.type("hi\n")
    screen.wait_for("ttft: ")
    screen.type("\x03")
    screen.wait_for("hit ctrl+c,avg ")
    screen.wait_for(">> ")
    screen.type("half a li")
    screen.wait_for("half a li")
    time.sleep(0.2)  # like a person: a signal between two reads of a line takes effect only with the next key
    screen.type("\x03")  # the line is discarded
    screen.wait_for(">> ")
    screen.type("ok\n")
    screen.wait_for("ttft: ")  # the conversation continues, and so does the template process
    screen.type("\x03")
    screen.wait_for("hit ctrl+c,avg ")
    screen.wait_for(">> ")
    screen.type("reset\nhi\n")
    screen.wait_for("ms\n")
    time.sleep(0.3)
    screen.type("\x03")
    answer = screen.wait_for("^C")
    assert _letters(_single_answer(endless, "hi", "--max-tokens", "1000")).startswith(_letters(answer))
    screen.wait_for("hit ctrl+c,avg ")
    screen.wait_for(">> ")
    screen.type("\x04")  # the end of the input
    assert screen.end() == 0


def test_ctrl_c_ends_a_program_that_is_not_interactive(endless: Path, start: Start) -> None:
    screen = start(endless, *SLOW, "--prompt", "hi")
    screen.wait_for("ttft: ")
    screen.type("\x03")
    screen.wait_for("hit ctrl+c,avg ")
    assert screen.end() == 0


def test_a_full_context_is_reported(folder: Path, start: Start) -> None:
    screen = start(folder, "--prompt", "hi", "--continue", "1")
    screen.wait_for("hit context full,avg ")
    screen.wait_for("the context is full: ask shorter questions, reset, or build with a larger kv_cache_len\n")
    screen.wait_for(">> ")
    screen.type("and then?\n")
    screen.wait_for("axzoo: the prompt has ")
    screen.wait_for(">> ")
    screen.type("reset\nand then?\n")
    screen.wait_for("hit context full,avg ")
    screen.wait_for(">> ")
    screen.type("q\n")
    assert screen.end() == 0


def test_prompts_from_a_pipe(folder: Path) -> None:
    command = [sys.executable, "-m", "axzoo.cli", "run", str(folder), "--greedy", "--max-tokens", "3"]
    done = subprocess.run(command, input="hi\n\nreset\nhi\n", capture_output=True, text=True, check=True)
    one = _single_answer(folder, "hi", "--max-tokens", "3")
    start = 'Type "q" to exit, Ctrl+c to stop current running\n'
    assert done.stdout == f"{start}>> {one}>> >> >> {one}>> \n"
    assert "loading" not in done.stderr


def test_without_live_print_the_answer_is_printed_whole(endless: Path, start: Start) -> None:
    screen = start(endless, *SLOW, "--prompt", "hi", "--live_print", "0")
    screen.wait_for("ms\n")
    assert not select.select([screen.terminal], [], [], 0.5)[0]  # many tokens, none of them printed
    os.kill(screen.pid, signal.SIGINT)
    screen.wait_for("\nhit ctrl+c,avg ")
    assert screen.end() == 0


@pytest.mark.parametrize("end", ["max tokens", "context full", "ctrl+c"])
@pytest.mark.parametrize("live", [True, False])
def test_an_incomplete_character_is_dropped(
    folder: Path, capfd: pytest.CaptureFixture[str], live: bool, end: str
) -> None:
    """It is neither printed nor remembered."""
    tokens = load_tokenizer(folder / "tokenizer").encode("x" * 57 + "😀")[:-1]  # the question takes 4 of 63 tokens

    def sampler(_logits: Logits, answer: Sequence[int]) -> int:
        if len(answer) == 60 and end == "ctrl+c":
            raise KeyboardInterrupt
        return tokens[len(answer)]

    tokenizer = open_tokenizer(TokenizerChoice(None, str(folder / "tokenizer"), False, False, frozenset()), True)
    encoded: list[Message] = []

    def encode(messages: Sequence[Message]) -> list[int]:
        encoded[:] = messages
        return tokenizer.encode(messages)

    chat = Chat(load_model(folder), encode, sampler, frozenset(), max_tokens=60 if end == "max tokens" else None)
    Terminal(chat, tokenizer, live).answer("hey" if end == "context full" else "h")
    out, err = capfd.readouterr()
    assert f"hit {end}," in err
    assert out == "x" * 57 + "\n"
    chat.ask("and?")
    assert encoded[1] == {"role": "assistant", "content": "x" * 57}


EMOJI = "a😀法é!"


@pytest.mark.parametrize("live", [True, False])
def test_an_incomplete_character_is_never_printed(folder: Path, monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    """The tokens are single bytes; the characters of the answer have four, three and two."""
    tokens = load_tokenizer(folder / "tokenizer").encode(EMOJI)
    assert len(tokens) == 1 + 4 + 3 + 2 + 1

    def sampler(_logits: Logits, answer: Sequence[int]) -> int:
        return tokens[len(answer)]

    class Recorder:
        def __init__(self) -> None:
            self.pieces: list[str] = []

        def write(self, text: str) -> None:
            self.pieces.append(text)

        def flush(self) -> None:
            pass

    recorder = Recorder()
    monkeypatch.setattr(sys, "stdout", recorder)
    tokenizer = open_tokenizer(TokenizerChoice(None, str(folder / "tokenizer"), False, False, frozenset()), True)
    chat = Chat(load_model(folder), tokenizer.encode, sampler, frozenset(), max_tokens=len(tokens))
    Terminal(chat, tokenizer, live).answer("hi")
    monkeypatch.undo()
    pieces = [piece for piece in recorder.pieces if piece]
    assert pieces == [*EMOJI, "\n"] if live else [EMOJI, "\n"]
