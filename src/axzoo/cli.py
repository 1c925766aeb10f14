"""`axzoo VERB`: each verb is a module of axzoo.commands, and only the one asked for is imported."""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from axzoo import __version__, commands
from axzoo.core.errors import AxzooError

ABOUT = """Builds, checks and runs a zoo of language models for Axera NPUs. Whole zoos are built with snakemake.
A verb may be written with underscores, too: llm_build."""


_LONGEST_LINE = 1000
_FEWER_JOBS = "build with fewer jobs at once (snakemake --cores)"
"""For verbs that say nothing better."""


def program() -> int:
    """`axzoo` itself. Python's collector of cycles looks through all that was imported, which stays, again and again,
    and once more at the end: a fifth of a small job's time, which it is spared."""
    gc.set_threshold(50_000, 100)
    status = main()
    gc.freeze()
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns 0, or 1 with one line on stderr when an AxzooError or the disk says no."""
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
        sys.stderr.close()  # whoever read our output has gone; there is nobody to tell
        return 1
    except MemoryError:
        return _fail(f"out of memory: {getattr(command, 'OUT_OF_MEMORY', _FEWER_JOBS)}")
    except OSError as error:
        return _fail(_disk_words(error))
    return 0


def _fail(message: str) -> int:
    print(f"axzoo: {_shown(message)}", file=sys.stderr)
    return 1


def _shown(message: str) -> str:
    """The message, of which parts may come out of a stranger's file: no line is long, nothing moves the cursor."""
    lines = (line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in message.split("\n"))
    return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def _disk_words(error: OSError) -> str:
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk while writing {where}: free some and run again"
    return f"{where}: {error.strerror or error}"


if __name__ == "__main__":
    sys.exit(program())
