"""Snakemake's `--logger axzoo`. Snakemake finds it by the name of this package; `axzoo.report.display` implements it."""

from axzoo.report.display import LogHandler

__all__ = ["LogHandler"]
