"""Bundles with equal files for two chips are checked once, and the second gets the report of the first."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from axzoo.check.shared_verdict import check_once
from axzoo.core.errors import AxzooError


class Check:
    """A check that counts its runs."""

    def __init__(self, passes: bool = True) -> None:
        self.runs = 0
        self.passes = passes

    def __call__(self, args: argparse.Namespace) -> None:
        self.runs += 1
        if not self.passes:
            raise AxzooError("failed")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"passed": True, "run": self.runs}))


Check.__module__ = "axzoo.check.verdict"  # its fingerprint stands for the check's code


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for chip in ("AX650", "AX620E"):
        bundle = tmp_path / chip / "tiny-w8a16"
        bundle.mkdir(parents=True)
        manifest = {"chip": chip, "files": {"a.axmodel": {"sha256": "0", "size": 1}}}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def arguments(results: Path, chip: str, **options: object) -> argparse.Namespace:
    places = {"bundle": results / chip / "tiny-w8a16", "lock": results / "locks", "source": results / chip}
    output = results / "checks" / chip / "tiny-w8a16/layers.json"
    return argparse.Namespace(**places, output=output, **{"prompt": "What?", **options})


def report(results: Path, chip: str) -> object:
    return json.loads((results / "checks" / chip / "tiny-w8a16/layers.json").read_text())


def test_equal_files_are_checked_once(results: Path) -> None:
    check = Check()
    for chip in ("AX650", "AX620E"):
        check_once(check, arguments(results, chip))
    assert check.runs == 1
    assert report(results, "AX620E") == report(results, "AX650")
    assert {path.name for path in (results / "checks").iterdir()} == {"AX650", "AX620E"}


def test_the_same_bundle_is_checked_again(results: Path) -> None:
    check = Check()
    for _ in range(2):
        check_once(check, arguments(results, "AX650"))
    assert check.runs == 2


def test_other_files_or_options_are_checked(results: Path) -> None:
    check = Check()
    check_once(check, arguments(results, "AX650"))
    check_once(check, arguments(results, "AX620E", prompt="Why?"))
    assert check.runs == 2
    manifest = results / "AX620E/tiny-w8a16/manifest.json"
    manifest.write_text(manifest.read_text().replace('"0"', '"1"'))
    check_once(check, arguments(results, "AX620E"))
    assert check.runs == 3


def test_a_failed_check_has_no_verdict_to_share(results: Path) -> None:
    failing = Check(passes=False)
    for chip in ("AX650", "AX620E"):
        with pytest.raises(AxzooError):
            check_once(failing, arguments(results, chip))
    assert failing.runs == 2


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_damaged_and_older_reports_are_not_used(results: Path, content: str) -> None:
    check = Check()
    check_once(check, arguments(results, "AX650"))
    (results / "checks/AX650/tiny-w8a16/layers.json").write_text(content)
    check_once(check, arguments(results, "AX620E"))
    assert check.runs == 2


def test_a_report_elsewhere_is_always_made(results: Path) -> None:
    """As by `axzoo verify --checks`."""
    check = Check()
    check_once(check, arguments(results, "AX650"))
    args = arguments(results, "AX620E")
    args.output = results / "here/layers.json"
    check_once(check, args)
    assert check.runs == 2
    shutil.rmtree(results / "AX620E")
    check_once(check, arguments(results, "AX620E"))  # reports the missing bundle itself
    assert check.runs == 3
