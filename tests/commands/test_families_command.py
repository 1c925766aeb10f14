"""`axzoo families`: the table matches the families, and the tests that it names exist."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from axzoo.commands import families
from axzoo.core.errors import AxzooError
from axzoo.model.config_view import ConfigView
from axzoo.model.families import load_family, supported_model_types
from axzoo.model.rope import ROPE_TYPES

ROOT = Path(__file__).parents[2]


def test_every_family_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    families.run(argparse.Namespace())
    head, *rows, _, checkpoints = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "model_type"
    assert [row.split()[0] for row in rows] == supported_model_types()
    for row, model_type in zip(rows, supported_model_types(), strict=True):
        family = load_family(model_type)
        assert ", ".join(family.ROPE_TYPES) in row
        assert family.PARITY_TESTS in row
    assert checkpoints.startswith("Checkpoint formats of every model_type: safetensors")


@pytest.mark.parametrize("model_type", supported_model_types())
def test_named_parity_tests_exist(model_type: str) -> None:
    file, option, word = load_family(model_type).PARITY_TESTS.split()
    assert option == "-k"
    assert f'"{word}' in (ROOT / file).read_text()


def test_unsupported_rope_type_is_rejected() -> None:
    view = ConfigView({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, Path("config.json"))
    with pytest.raises(AxzooError, match=r"config\.json: rope_type is 'linear', but must be 'default' or 'longrope'"):
        view.rope(8, 64, types=load_family("phi3").ROPE_TYPES)
    assert all(set(load_family(model_type).ROPE_TYPES) <= set(ROPE_TYPES) for model_type in supported_model_types())
