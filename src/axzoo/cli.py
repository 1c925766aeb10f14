"""The command line, `axzoo VERB`. Each verb is a module of axzoo.commands; only the requested one is imported."""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from axzoo import __version__, commands
from axzoo.core.console import open_standard_streams, require_utf8
from axzoo.core.errors import DISK_FULL, AxzooError

ABOUT = """Build, check and run language models for Axera NPUs. Use snakemake to build a whole matrix of models.
Verbs may also be written with underscores: llm_build."""


_MAX_LINE_LENGTH = 1000
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FEWER_JOBS = "build with fewer jobs at once (snakemake --cores)"
"""Advice for verbs that do not define OUT_OF_MEMORY."""


def program() -> int:
    """Entry point of the `axzoo` program.

    Garbage collection is made rare and skipped at exit: scanning the imported modules takes a fifth of the run time of
    a small job, and they are never freed.
    """
    require_utf8()
    open_standard_streams()
    gc.set_threshold(50_000, 100)
    status = main()
    gc.freeze()
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status. An AxzooError or OSError gives 1 and a message of one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbs = _verbs()
    module = verbs.get(words[0].replace("_", "-")) if words else None  # llm_build is llm-build
    if module is not None:
        return _run(words[0], module, words[1:])
    parser = argparse.ArgumentParser("axzoo", description=ABOUT, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=f"axzoo {__version__}")
    summaries = "\n".join(f"{verb:18}{_summary(module)}" for verb, module in verbs.items())
    parser.add_argument("verb", choices=verbs, metavar="VERB", help=summaries)
    parser.parse_args(words or ["--help"])
    return 0


def _verbs() -> dict[str, str]:
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__) if module.name[0] != "_")
    return {name.replace("_", "-"): name for name in names}


def _command(module: str) -> Any:
    return importlib.import_module(f"axzoo.commands.{module}")


def _summary(module: str) -> str:
    return str(_command(module).__doc__).splitlines()[0]


def _run(verb: str, module: str, words: list[str]) -> int:
    from axzoo.core.console import log_to_stream

    command = _command(module)
    parser = argparse.ArgumentParser(f"axzoo {verb}", description=command.__doc__)
    command.add_arguments(parser)
    args = parser.parse_args(words)
    log_to_stream(sys.stderr)
    try:
        command.run(args)
    except AxzooError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # stdout's pipe is closed
        return 1
    except MemoryError:
        return _fail(f"out of memory: {getattr(command, 'OUT_OF_MEMORY', _FEWER_JOBS)}")
    except OSError as error:
        return _fail(_describe_os_error(error))
    except UnicodeEncodeError as error:  # Python represents bytes of a path that are not UTF-8 as surrogates
        around = error.object[max(0, error.start - 40) : error.end + 40]
        return _fail(f"{around!r} is not UTF-8 text: if it is part of a path, rename the file or folder")
    return 0


def _fail(message: str) -> int:
    try:
        with suppress(BrokenPipeError):
            print(f"axzoo: {_sanitize(message)}", file=sys.stderr, flush=True)
            sys.stdout.flush()
    except OSError as error:
        for stream in (sys.stdout, sys.stderr):  # what they still hold cannot be written at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return DISK_FULL if error.errno in _NO_SPACE else 1
    return 1


def _sanitize(message: str) -> str:
    """Truncate long lines and escape control characters: a message may contain text from untrusted files."""
    lines = (line if len(line) <= _MAX_LINE_LENGTH else f"{line[:_MAX_LINE_LENGTH]}..." for line in message.split("\n"))
    return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def _describe_os_error(error: OSError) -> str:
    path = error.filename or "a file"
    if error.errno in _NO_SPACE:
        return f"no space left on the disk while writing {path}: free some space and run again"
    return f"{path}: {error.strerror or error}"


if __name__ == "__main__":
    sys.exit(program())
