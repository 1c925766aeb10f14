"""List the architectures axzoo compiles."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes none."""


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from axzoo.families import load_family, supported_model_types

    table = Table(box=None, header_style="bold")
    for column in ("model_type", "models and what is particular", "parity tests: pytest ..."):
        table.add_column(column, overflow="fold")
    for model_type in supported_model_types():
        family = load_family(model_type)
        table.add_row(model_type, " ".join(str(family.__doc__).split()), family.PARITY_TESTS)
    Console().print(table)
