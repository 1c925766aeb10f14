from __future__ import annotations

from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.matrix.chips import load_chips

ROOT = Path(__file__).parents[2]


def test_project_chip_table() -> None:
    table = load_chips(ROOT / "config/chips.yaml")
    assert list(table.chips) == ["AX650", "AX620E"]
    assert table.canonical_names() == {"AX650": "AX650", "AX650N": "AX650", "AX620E": "AX620E", "AX630C": "AX620E"}
    assert table.chips["AX650"].tops_int8 == 18
    assert table.chips["AX620E"].npu_memory_mb == 3072


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chips: {}\n", "1: chips: {} must have at least 1 item"),
        (
            "chips:\n  A1: {other_names: [], tops_int8: 1, npu_memory: 2}\n",
            "2: unknown key 'npu_memory' in chips.A1: did you mean 'npu_memory_mb'?",
        ),
        (
            "chips:\n  ../x: {other_names: [], tops_int8: 1, npu_memory_mb: 2}\n",
            "2: chips.../x: '../x' is not a chip's name, like 'AX650'",
        ),
        (
            "chips:\n"
            "  A1: {other_names: [A2], tops_int8: 1, npu_memory_mb: 2}\n"
            "  A3: {other_names: [A2], tops_int8: 1, npu_memory_mb: 2}\n",
            "3: the name A2 is used twice: remove one",
        ),
        (
            "chips:\n"
            "  A1: {other_names: [A2], tops_int8: 1, npu_memory_mb: 2}\n"
            "  A2: {other_names: [], tops_int8: 1, npu_memory_mb: 2}\n",
            "2: the name A2 is used twice: remove one",
        ),
    ],
)
def test_problems_are_reported_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "chips.yaml"
    path.write_text(text)
    with pytest.raises(AxzooError) as error:
        load_chips(path)
    assert f"{path}:{message}" in str(error.value)
