"""Extract the embedding table to bf16."""

from __future__ import annotations

import argparse

from axzoo.commands._arguments import add_job_arguments, job_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from axzoo.build import build_embed

    build_embed(job_of(args))
