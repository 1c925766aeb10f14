"""What the checks of a build found, in the words of `llm_build`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from axzoo.check.verdict import worst_cosine

logger = logging.getLogger(__name__)

REPORTS = {1: "layers", 2: "generation"}
"""The check's files, by level: <name>.json and <name>.log."""


def tell_worst_layer(report: Any) -> None:
    """Level 1, after its log, which tells of every layer: the worst of all."""
    worst, layer = worst_cosine(report)
    told = f"cos_sim is at least {worst}" if worst is not None else f"cos_sim of layer {layer} is no number"
    logger.info(f"all {len(report['layers'])} layers: {told}")


def in_users_words(text: str, bundle: Path, output: Path) -> str:
    """A check's log, its files called by the names they have in `output`."""
    return text.replace(str(bundle), str(output))
