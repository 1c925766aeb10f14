"""scripts/fit_forecast.py: its rules, its errors, and the parameters and the plot that it wrote."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from axzoo.forecast.published import PublishedRow, published_rows
from axzoo.forecast.speed import PARAMETERS

SCRIPTS = Path(__file__).parents[2] / "scripts"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PLOT, ROWS = _load("forecast_plot"), _load("forecast_rows")
FIT = _load("fit_forecast")  # imports the others


@pytest.fixture(scope="module")
def result() -> Any:
    return FIT.result()


def test_parameters_are_those_that_the_script_fits(result: Any) -> None:
    assert PARAMETERS.read_text(encoding="utf-8") == result.text


def test_the_plot_is_the_one_that_the_script_draws(result: Any) -> None:
    text = PLOT.plot(list(FIT.marks(result)))
    drawn = FIT.PLOT.read_text(encoding="utf-8")
    number = re.compile(r"\d+\.\d+")
    assert number.sub("N", drawn) == number.sub("N", text)
    assert [float(n) for n in number.findall(drawn)] == pytest.approx([float(n) for n in number.findall(text)], abs=0.3)
    marks = [one for one in ElementTree.fromstring(text).iter() if one.tag.endswith("title")]
    described = [row for row in published_rows() if row.anatomy is not None]
    assert len(marks) == sum(bool(row.tok_s) + bool(row.ttft_ms) for row in described)


@pytest.mark.parametrize(("quantity", "middle", "worst", "rows"), [("decode", 0.05, 0.2, 40), ("ttft", 0.08, 0.3, 20)])
def test_errors_with_the_model_left_out(result: Any, quantity: str, middle: float, worst: float, rows: int) -> None:
    errors = [abs(one.error) for one in result.judged[quantity]]
    assert len(errors) >= rows
    assert median(errors) <= middle
    assert max(errors) <= worst
    assert median(errors) < median(abs(error) for error in result.naive)


def test_intervals_cover_nine_of_ten_rows(result: Any) -> None:
    for quantity, ones in result.judged.items():
        limits = {host: 1 + result.parameters["errors"][f"{quantity}_{host}"] for host in ("onchip", "axcl")}
        hosts = [published_rows()[one.observation.row].host for one in ones]
        inside = [1 / limits[h] - 0.02 <= 1 + o.error <= limits[h] + 0.02 for h, o in zip(hosts, ones, strict=True)]
        assert sum(inside) >= 0.85 * len(ones)


def test_every_row_is_used_or_named_with_a_reason(result: Any) -> None:
    used = {one.observation.row for one in result.judged["decode"]}
    printed = "\n".join(FIT.report(result))
    for index, row in enumerate(published_rows()):
        if row.tok_s:
            assert (index in used) != (index in ROWS.left_out_rows())
        if index in ROWS.left_out_rows():
            assert f"{row}, {row.tok_s or '-'} tok/s" in printed


def _rows_with(monkeypatch: pytest.MonkeyPatch, *added: PublishedRow) -> dict[int, str]:
    rows = (*published_rows(), *added)
    for module in (FIT, ROWS):
        monkeypatch.setattr(module, "published_rows", lambda: rows)
    return {index - len(rows) + len(added): reason for index, reason in ROWS.left_out_rows().items()}


def _row(model: str, **changes: Any) -> PublishedRow:
    row = next(row for row in published_rows() if row.model == model and row.weight_type == "s8")
    return replace(row, **changes)


def test_a_stray_row_is_left_out_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _rows_with(monkeypatch, _row("Qwen2.5-0.5B", tok_s=60.0), _row("Qwen2.5-0.5B", tok_s=30.0))
    assert "contradicts rows with the same shape" in found[0]
    assert 1 not in found


def test_two_rows_that_disagree_are_both_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ROWS.left_out_rows()
    found = _rows_with(monkeypatch, _row("Llama2-7B", tok_s=5.4))
    assert "contradicts" in found[0]
    assert {published_rows()[index].model for index in ROWS.left_out_rows().keys() - before.keys() if index < 64} == {
        "Llama2-7B"
    }


def test_a_row_faster_over_pcie_than_possible_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = _row("TinyLlama-1.1B", board="AX8850-AXCL", host="axcl", tok_s=16.4)
    slow = _row("Llama3.2-1.2B", board="AX8850-AXCL", host="axcl", tok_s=11.0)
    found = _rows_with(monkeypatch, fast, slow)
    assert found[0].startswith("over PCIe at most 14.") and "16.5 on the board itself" in found[0]
    assert 1 not in found


def test_unknown_boards_cards_programs_and_weights_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    row = _row("Qwen2-1.5B")
    found = _rows_with(
        monkeypatch,
        replace(row, board="AX999", chip="AX999"),
        replace(row, board="AX650-AXCLx2"),
        replace(row, source="notes (own llama.cpp backend)"),
        replace(row, weight_type=""),
        replace(row, anatomy=None),
    )
    reasons = [found[index] for index in range(5)]
    assert [reason[:12] for reason in reasons] == [
        "the only mod",
        "several card",
        "another host",
        "weight type ",
        "layers that ",
    ]


def test_a_planted_error_in_the_data_shows_in_the_errors(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    """A model whose only row is twice as fast as was measured is forecast wrongly, because that row is not fitted."""
    rows = tuple(
        replace(row, tok_s=11.6) if row.model == "Qwen2.5-3B" and row.tok_s == 5.8 else row for row in published_rows()
    )
    rows = tuple(row for row in rows if row.model != "Qwen2.5-VL-3B-video")
    for module in (FIT, ROWS):
        monkeypatch.setattr(module, "published_rows", lambda: rows)
    judged = FIT.leave_one_model_out("decode", FIT.DECODE, FIT.decode_observations(), {})
    wrong = next(one for one in judged if one.observation.ms == pytest.approx(1000 / 11.6))
    assert wrong.error < -0.4
