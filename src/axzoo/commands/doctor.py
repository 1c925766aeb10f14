"""Say what a backend finds on this machine, and try it."""

from __future__ import annotations

import argparse

from axzoo.commands._arguments import add_compiler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="pulsar2", metavar="NAME", help="the backend to try (pulsar2)")
    add_compiler(parser)
    parser.add_argument("--chip", default="AX650", help="the chip to compile a tiny model for (AX650)")


def run(args: argparse.Namespace) -> None:
    import tempfile
    from pathlib import Path

    from axzoo.backends import load_backend

    backend = load_backend(args.backend)
    configured = backend.configured(backend.settings(args.compiler))
    with tempfile.TemporaryDirectory(prefix="axzoo-doctor-", ignore_cleanup_errors=True) as folder:
        for subject, finding in configured.doctor(args.chip, Path(folder)):
            print(f"{subject + ':':13}{finding}", flush=True)
