"""The output of check level 2 has the documented format."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from axzoo.check.generation import GenerationLog, format_hidden, visible
from axzoo.core.console import log_to_console, open_console, set_log_handler


@pytest.fixture(autouse=True)
def restored_log() -> Iterator[None]:
    yield
    set_log_handler(None)


def printed_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines printed on stdout and stderr, without time and source location."""
    return re.sub(r"^\d.* \| INFO     \| \S+ - ", "", capsys.readouterr().out, flags=re.MULTILINE).splitlines()


def simulate(start: int, end: int, chunk: int = 128) -> GenerationLog:
    """Calls the log like a decoder of two layers."""
    log_to_console(open_console(sys.stdout))
    log = GenerationLog(2)
    log.begin(start, end)
    for first in range(start, end, chunk):
        rows = np.full((min(chunk, end - first), 8), 0.5, np.float32)
        for layer in range(2):
            log.hidden(layer, first, rows)
    return log


def test_a_prompt_and_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(0, 2).token("2", (("2", 0.99996), ("\n", 0.00004)))
    rows = ["[[[0.5 0.5 0.5 ... 0.5 0.5 0.5]", "  [0.5 0.5 0.5 ... 0.5 0.5 0.5]]]"]
    layers = [["simulate layer 0", "end simulate", *rows], ["simulate layer 1", "end simulate", *rows]]
    assert printed_lines(capsys) == [*layers[0], *layers[1], "2", r"posibile ('2', 1.0),('\n', 0.0)"]
    simulate(12, 13).token("<|im_end|>", (("<|im_end|>", 1.0),))
    layer = ["start_indice = 12", "simulate layer {}", "end simulate", "[0.5 0.5 0.5 0.5 0.5]"]
    assert "\n".join(printed_lines(capsys)) == "\n".join([*layer, *layer]).format(0, 1) + (
        "\nstart_indice = 12\n<|im_end|>\nposibile ('<|im_end|>', 1.0)"
    )


@pytest.mark.parametrize(("tokens", "chunk", "passes"), [(5, 2, 3), (4, 2, 2), (3, 1, 3)])
def test_a_prompt_in_chunks_logs_the_start_and_end_of_every_layer(
    capsys: pytest.CaptureFixture[str], tokens: int, chunk: int, passes: int
) -> None:
    simulate(0, tokens, chunk)
    lines = [line for line in printed_lines(capsys) if "simulate" in line]
    assert lines == ["simulate layer 0", "end simulate", "simulate layer 1", "end simulate"] * passes
    assert all(a != b for a, b in pairwise(lines))


def test_the_format_of_a_hidden_state() -> None:
    values = np.array([[-1.25, 0.22265625, 2.375, 9, 9, 2.078125, -0.41015625, 1.84375]] * 8, np.float32)
    row = "[-1.25 0.222656 2.375 ... 2.07812 -0.410156 1.84375]"
    assert [line.strip() for line in format_hidden(values[None]).splitlines()] == [
        f"[[{row}", row, row, "...", row, row, f"{row}]]"
    ]  # fmt: skip


def test_control_characters_in_tokens_are_escaped() -> None:
    assert visible("a\nb\tc\x1b[2J\x9b \u202e d\\ é 答案") == r"a\nb\tc\x1b[2J\x9b \u202e d\\ é 答案".replace(
        r"d\\", "d\\"
    )
