"""The report files of checks.

A passing report is the output file of the workflow's rule. A failing one is written next to it under another name,
because Snakemake removes the outputs of failed jobs and the numbers are needed most when a check fails.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from axzoo.core.files import write_json


def failed_report(report: Path) -> Path:
    """The path of a failing report: layers.json -> layers.failed.json."""
    return report.with_suffix(f".failed{report.suffix}")


def remove_reports(report: Path) -> None:
    """Removes the report of an earlier check, passing or failing."""
    report.unlink(missing_ok=True)
    failed_report(report).unlink(missing_ok=True)


def write_report(report: Path, content: dict[str, Any]) -> Path:
    """Writes a report to `report`, or to `failed_report(report)` if its `passed` is false; returns the path.

    Infinite numbers and NaN, which come from files that overflow, become null.
    """
    path = report if content["passed"] else failed_report(report)
    write_json(path, _finite(content))
    return path


def split_exceeded(exceeded: Mapping[str, str], limits: Collection[str]) -> tuple[list[str], list[str]]:
    """Failures and warnings: exceeding a threshold by name fails a check if the matrix sets it, and is a warning if it
    is a default."""
    failures = [text for name, text in exceeded.items() if name in limits]
    return failures, [text for name, text in exceeded.items() if name not in limits]


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def worst_cosine(layers_report: Any) -> tuple[float | None, int] | None:
    """The lowest cosine of level 1 and its layer; None, from NaN, counts as lowest. No result if no layer ran."""
    kinds = [(layer[kind], layer["layer"]) for layer in layers_report["layers"] for kind in ("decode", "prefill")]
    found = [(errors["cosine"], layer) for errors, layer in kinds if errors]
    return min(found, key=lambda item: -math.inf if item[0] is None else item[0], default=None)
