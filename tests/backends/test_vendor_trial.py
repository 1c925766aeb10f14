"""`axzoo vendor-trial` with the simulator: a right compiler passes, a wrong one is found, the board's program
compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axzoo.backends.pulsar2.vendor_file import read_vendor_file
from axzoo.cli import main
from pulsar2_jobs import simulator

ENGINE = """
import json, zlib
from pathlib import Path
import numpy as np

class InferenceSession:
    '''Outputs that depend on the weights in the file, and on the inputs.'''

    def __init__(self, path):
        content = Path(path).read_bytes()
        start = content.index(b"npu_params", content.index(b"ax-model")) + 100
        self.seed = zlib.crc32(content[start : start + 600_000])

    def run(self, names, inputs, shape_group):
        assert inputs["indices"].dtype == np.uint32
        total = sum(float(array.astype(np.float64).sum()) for array in inputs.values())
        return [np.array([self.seed, shape_group, total])]
"""


def trial(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, dict[str, Any]]:
    words = ["vendor-trial", "--compiler", json.dumps(simulator()), "--output", str(folder), *options]
    status = main(words)
    captured = capsys.readouterr()
    return status, captured.out + captured.err, json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("weight_type", ["s8", "s4"])
def test_everything_passes(weight_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, report = trial(tmp_path / "trial", capsys, "-w", weight_type)
    assert status == 0, output
    assert [check["passed"] for check in report["checks"]] == [True] * 7
    assert report["tool"]["version"] == "7.0 (0123abcd)"
    assert str(tmp_path) not in json.dumps(report), "a report that is sent has no paths"
    assert f"{weight_type}, rule A, 32 rows per block" in report["checks"][2]["detail"]
    made, own = (tmp_path / "trial/board" / name for name in ("made_layer_1.axmodel", "layer_1.axmodel"))
    assert bytes(read_vendor_file(made).table) == bytes(read_vendor_file(own).table)
    assert sorted(path.name for path in (tmp_path / "trial").iterdir()) == ["board", "report.json"]


def test_a_compiler_that_confuses_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATOR_QUIRKS", "swapped")
    status, output, report = trial(tmp_path / "trial", capsys)
    assert status == 1
    failed = [check["name"] for check in report["checks"] if not check["passed"]]
    assert "every weight of layer_1 is in its table" in failed
    assert "checks did not pass: please send the report" in output


def test_the_boards_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With an engine whose outputs depend on the weights: the made file gives the outputs of the compiler's file."""
    status, output, _ = trial(tmp_path / "trial", capsys)
    assert status == 0, output
    board = tmp_path / "trial/board"
    (board / "axengine.py").write_text(ENGINE)
    groups = json.loads((board / "inputs.json").read_text())
    assert len(groups) == 3
    masks = [np.fromfile(board / group["mask"]["file"], np.uint16) for group in groups]
    assert all((mask == 0).any() and set(mask) <= {0, 0xC780} for mask in masks), "open slots, and -65536 in bf16"

    def run() -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, "board_trial.py"]
        return subprocess.run(command, cwd=board, env=environment, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    found = json.loads((board / "board.json").read_text())
    assert found["loaded"] == ["layer_0.axmodel", "layer_1.axmodel", "made_layer_1.axmodel"]
    assert [(group["equal"], group["layers_differ"]) for group in found["groups"]] == [([True], True)] * 3
    (board / "made_layer_1.axmodel").write_bytes((board / "layer_0.axmodel").read_bytes())
    assert run().returncode == 1
