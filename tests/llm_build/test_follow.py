"""A log shown while it is written, or afterwards, once either way."""

from __future__ import annotations

from pathlib import Path

import pytest

from axzoo.llm_build.output import Follower


def test_lines_appear_as_they_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "layers.log"
    log.write_text("an earlier job's\n")
    follower = Follower(log, lambda text: text.replace("results/Q", "out"))
    follower.show_new()
    assert capsys.readouterr().out == ""
    with log.open("w") as file:  # truncated, as a shell's > does
        follower.show_new()
        for written, shown in (("load results/Q/l0\nload res", "load out/l0\n"), ("ults/Q/l1\nend", "load out/l1\n")):
            file.write(written)
            file.flush()
            follower.show_new()
            assert capsys.readouterr().out == shown
    follower.show_rest()
    follower.show_rest()
    assert capsys.readouterr().out == "end"


def test_of_a_check_that_need_not_run_all_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "layers.log"
    follower = Follower(log, str)
    follower.show_new()
    follower.show_rest()
    log.write_text("all of it")
    follower = Follower(log, str)
    follower.show_new()
    follower.show_rest()
    assert capsys.readouterr().out == "all of it"
