"""Where a check's report is kept.

A report that passed is what the workflow's rule promises. One that failed lies beside it under another name: Snakemake
removes the promised file of a job that fails, and whoever's check failed needs exactly its numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axzoo.files import write_json


def failed_report(report: Path) -> Path:
    """layers.json -> layers.failed.json"""
    return report.with_suffix(f".failed{report.suffix}")


def remove_reports(report: Path) -> None:
    """Removes what an earlier check left, passed or failed."""
    report.unlink(missing_ok=True)
    failed_report(report).unlink(missing_ok=True)


def write_report(report: Path, content: dict[str, Any]) -> Path:
    """Writes a report, by its own `passed` under one name or the other; returns the file."""
    path = report if content["passed"] else failed_report(report)
    write_json(path, content)
    return path
