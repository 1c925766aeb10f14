"""`axzoo report` lists every build of a matrix."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from axzoo.commands import report
from axzoo.matrix.entries import load_zoo

ROOT = Path(__file__).parents[2]


def test_report_lists_every_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    report.run(argparse.Namespace(matrix=Path("config/zoo.yaml")))
    lines = capsys.readouterr().out.splitlines()
    forecasts = [line for line in lines if line.startswith("  forecast about ")]
    lines = [line for line in lines if line not in forecasts]
    reported = dict(zip(lines[::2], lines[1::2], strict=True))
    zoo = load_zoo(Path("config/zoo.yaml"))
    assert len(reported) == 2 * len(zoo.models)
    assert reported["Qwen2-0.5B-Instruct-w8a16 for AX620E"].startswith("  bundle   not built: snakemake ")
    assert reported["Llama-2-7b-hf-w8a16 for AX620E"] == (
        "  left out AX620E has 3072 MB, Llama-2-7b-hf-w8a16 needs 8227 MB: 7691 of weights, 536 of KV cache. "
        "It would fit with chips: AX650"
    )
    assert len(forecasts) == len(zoo.builds())
    assert forecasts[0] == (
        "  forecast about 2.7 tok/s (2.42 to 3.01), 851 ms to the first token, 9354 of 11317 MB, 6892 MB of files"
    )
    assert sum(text.startswith("  left out ") for text in reported.values()) == len(zoo.left_out())
