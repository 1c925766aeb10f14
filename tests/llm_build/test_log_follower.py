"""A log is printed exactly once, either while it is written or afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from axzoo.llm_build.output import LogFollower


def test_lines_appear_as_they_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "layers.log"
    log.write_text("log of an earlier job\n")
    follower = LogFollower(log, lambda text: text.replace("results/Q", "out"))
    follower.show_new()
    assert capsys.readouterr().out == ""
    with log.open("w") as file:  # truncates the log, like > in a shell
        follower.show_new()
        for written, shown in (("load results/Q/l0\nload res", "load out/l0\n"), ("ults/Q/l1\nend", "load out/l1\n")):
            file.write(written)
            file.flush()
            follower.show_new()
            assert capsys.readouterr().out == shown
    follower.show_rest()
    follower.show_rest()
    assert capsys.readouterr().out == "end"


def test_existing_log_is_shown_if_no_job_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "layers.log"
    follower = LogFollower(log, str)
    follower.show_new()
    follower.show_rest()
    log.write_text("the whole log")
    follower = LogFollower(log, str)
    follower.show_new()
    follower.show_rest()
    assert capsys.readouterr().out == "the whole log"
