"""Snakemake's `--logger axzoo`, found by the name of this package and implemented in `axzoo.report.display`."""

from axzoo.report.display import LogHandler
from axzoo.report.startup import prepare

__all__ = ["LogHandler"]

prepare()
