"""Snakemake's `--logger axzoo`. Snakemake finds it by this package's name."""

from snakemake_logger_plugin_axzoo.handler import LogHandler

__all__ = ["LogHandler"]
