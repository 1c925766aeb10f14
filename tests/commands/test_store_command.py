"""`axzoo store` on the results of a build."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from axzoo.cli import main
from tiny_model import Built


@pytest.fixture
def results(s8: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results of a project with one bundle, which uses two of the four store entries."""
    built, results = s8.folder.parent, tmp_path / "results"
    shutil.copytree(built / "store", results / "store", ignore=shutil.ignore_patterns("users"))
    for receipt in built.glob("receipts/*_l?_*.json"):
        copy = results / "receipts/AX650/tiny-w8a16" / receipt.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(receipt, copy)
        key = json.loads(receipt.read_text())["key"]
        bundle = results / "AX650/tiny-w8a16"
        bundle.mkdir(parents=True, exist_ok=True)
        os.link(results / "store" / key[:2] / key, bundle / f"{receipt.stem}.axmodel")
    monkeypatch.chdir(tmp_path)
    return results


def _age(results: Path) -> None:
    for path in results.glob("store/*/*"):
        os.utime(path, (0, 0))


def test_size(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "size"]) == 0
    head, shared, alone = capsys.readouterr().out.splitlines()
    assert head.startswith("4 entries, ")
    assert shared.endswith(" MB shared with bundles")
    assert alone.endswith(" MB only in the store")


def test_list(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(row[-1] for row in rows) == ["AX650/tiny-w8a16", "AX650/tiny-w8a16", "unused", "unused"]
    assert main(["store", "list", "--json", "--store", str(results / "store")]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert sorted((entry["kind"], entry["links"], len(entry["bundles"])) for entry in entries) == [
        ("embed", 0, 0),
        ("layer", 1, 1),
        ("layer", 1, 1),
        ("post", 0, 0),
    ]
    assert {entry["about"].get("weight_type") for entry in entries} == {"s8", None}


def test_verify_and_repair(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify"]) == 0
    assert capsys.readouterr().out == "4 entries, all intact\n"
    key = next(path.name for path in sorted(results.glob("store/*/*")) if path.suffix == "")
    with (results / "store" / key[:2] / key).open("ab") as file:
        file.write(b"\0")
    for words, action in (([], "kept"), (["--repair"], "removed")):
        assert main(["store", "verify", *words]) == 1
        shown = capsys.readouterr()
        assert shown.out == f"{key}: its data does not match its receipt; {action}\n"
        assert "axzoo: results/store has 1 damaged entries: " in shown.err
    assert main(["store", "verify"]) == 0
    assert capsys.readouterr().out == "3 entries, all intact\n"


def test_gc(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "gc"]) == 0
    assert capsys.readouterr().out.startswith("removed 0 entries")  # all were used recently
    _age(results)
    assert main(["store", "gc", "--dry-run"]) == 0
    assert "would remove 2 entries, " in capsys.readouterr().out
    assert len(list(results.glob("store/*/*.json"))) == 4
    assert main(["store", "gc"]) == 0
    assert "removed 2 entries, " in capsys.readouterr().out
    assert len(list(results.glob("store/*/*.json"))) == 2
    shutil.rmtree(results / "AX650")
    assert main(["store", "gc"]) == 0
    assert not list(results.glob("store/*/*"))


@pytest.mark.parametrize("days", ["-1", "nan", "inf"])
def test_invalid_days(results: Path, capsys: pytest.CaptureFixture[str], days: str) -> None:
    _age(results)
    assert main(["store", "gc", f"--days={days}"]) == 1
    assert "is not valid: give a number of 0 or more" in capsys.readouterr().err
    assert len(list(results.glob("store/*/*.json"))) == 4


def test_without_receipts_nothing_is_removed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _age(results)
    (results / "receipts").rename(results / "elsewhere")
    assert main(["store", "gc"]) == 1
    assert "results/receipts is not a folder" in capsys.readouterr().err
    assert len(list(results.glob("store/*/*.json"))) == 4
    assert main(["store", "gc", "--receipts", "results/elsewhere"]) == 0
