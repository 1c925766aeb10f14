"""Where a check's report is kept.

A report that passed is what the workflow's rule promises. One that failed lies beside it under another name: Snakemake
removes the promised file of a job that fails, and whoever's check failed needs exactly its numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from axzoo.core.files import write_json


def failed_report(report: Path) -> Path:
    """layers.json -> layers.failed.json"""
    return report.with_suffix(f".failed{report.suffix}")


def remove_reports(report: Path) -> None:
    """Removes what an earlier check left, passed or failed."""
    report.unlink(missing_ok=True)
    failed_report(report).unlink(missing_ok=True)


def write_report(report: Path, content: dict[str, Any]) -> Path:
    """Writes a report, by its own `passed` under one name or the other; returns the file. A number that is infinite or
    none, as files that overflow give, becomes null."""
    path = report if content["passed"] else failed_report(report)
    write_json(path, _finite(content))
    return path


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def worst_cosine(layers_report: Any) -> tuple[float | None, int]:
    """The least cosine of level 1 and its layer; None where one is no number."""
    kinds = [(layer[kind], layer["layer"]) for layer in layers_report["layers"] for kind in ("decode", "prefill")]
    found = [(closeness["cosine"], layer) for closeness, layer in kinds if closeness]
    return min(found, key=lambda item: -math.inf if item[0] is None else item[0])
