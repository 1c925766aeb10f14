"""Receipts of compile jobs: round trip, other versions, damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.parts.kind import PartId
from axzoo.parts.receipt import Receipt, read_receipt

RECEIPT = Receipt(
    PartId("layer", 3), "llama_p128_l3_together.axmodel", "k" * 64, "5" * 64, 12, {"weight_type": "s8"}, "i" * 64
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_json(tmp_path / "receipt.json", RECEIPT.to_dict())
    return tmp_path / "receipt.json"


def test_round_trip(path: Path) -> None:
    assert read_receipt(path) == RECEIPT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 4}, "has format 4, and this axzoo reads formats up to 3: it was written by a newer version"),
        ({"format": 2}, "has format 2, which an older axzoo wrote: remove it and build its bundle again"),
        ({"format": None}, "is damaged: remove it and build its bundle again"),
        ({"kind": 7}, "is damaged"),
        ({"index": -1}, "is damaged"),
        ({"size": "many"}, "is damaged"),
        ({"about": None}, "is damaged"),
    ],
)
def test_unusable_receipts(path: Path, change: dict[str, Any], message: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AxzooError, match=message) as error:
        read_receipt(path)
    assert str(path) in str(error.value)


def test_unknown_field_of_a_newer_version_is_ignored(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 3}))
    assert read_receipt(path) == RECEIPT
