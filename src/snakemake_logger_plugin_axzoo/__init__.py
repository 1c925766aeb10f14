"""Snakemake's `--logger axzoo`, which Snakemake finds by this package's name. The handler is `axzoo.report.display`."""

from axzoo.report.display import LogHandler

__all__ = ["LogHandler"]
