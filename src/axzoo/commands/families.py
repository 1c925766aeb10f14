"""List the supported architectures."""

from __future__ import annotations

import argparse

CHECKPOINTS = (
    "Checkpoint formats of every model_type: safetensors and pytorch_model.bin, single or sharded, in fp32, fp16 or "
    "bf16, and 4-bit and 8-bit GPTQ; llama and qwen2 also as GGUF."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments."""


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from axzoo.model.families import load_family, supported_model_types

    table = Table(box=None, header_style="bold")
    for column in ("model_type", "models and their features", "rope_type", "parity tests: pytest ..."):
        table.add_column(column, overflow="fold")
    for model_type in supported_model_types():
        family = load_family(model_type)
        summary = str(family.__doc__).partition("\n\n")[0]
        table.add_row(model_type, " ".join(summary.split()), ", ".join(family.ROPE_TYPES), family.PARITY_TESTS)
    console = Console()
    console.print(table)
    console.print(f"\n{CHECKPOINTS}", highlight=False)
