"""What axzoo changes in the `snakemake` command before it reads anything, for axzoo's own Snakefile only.

Snakemake imports its logger plugins when it creates its argument parser, so the plugin's package calls `prepare`. When
the Snakefile is read, it is too late for these changes:

- `--configfile` would be read by Snakemake's reader, which evaluates Python expressions (YTE), also a stranger's.
- The cache folder would be created below a HOME that may not be writable.
- Prompts would be passed to jobs in the encoding of the locale, and a closed stdout would be an error.
- On a full disk, each line of Snakemake's log would cause a traceback.
- A project's path that is not UTF-8 would cause an error in every line of Snakemake's log.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from axzoo.core.console import open_standard_streams, require_utf8

_USES_PLAN = re.compile(r"^from axzoo\.matrix\.plan import ", re.MULTILINE)


def prepare() -> None:
    """Wraps the function that runs Snakemake with its parsed arguments. Does nothing in other programs."""
    command: Any = sys.modules.get("snakemake.cli")
    if command is None:
        return
    run = command.args_to_api

    def run_prepared(args: Any, parser: Any) -> Any:
        if is_axzoo_workflow(command.resolve_snakefile(args.snakefile, allow_missing=True)):
            require_utf8()
            open_standard_streams()
            project = Path(args.directory or ".").absolute()
            if any("\udc80" <= character <= "\udcff" for character in str(project)):
                print(f"axzoo: {str(project)!a} is not UTF-8 text: rename the folder", file=sys.stderr)
                return False
            logging.raiseExceptions = False
            leave_matrices_to_axzoo()
            use_writable_cache(project)
        return run(args, parser)

    command.args_to_api = run_prepared


def is_axzoo_workflow(snakefile: Path | str | None) -> bool:
    """Whether the file is axzoo's Snakefile, or the file workflow/Snakefile that includes it."""
    if not isinstance(snakefile, Path):
        return False
    path = snakefile.absolute()
    files = [path, *([path.parents[1] / path.name] if path.parent.name == "workflow" else [])]
    return any(file.is_file() and _USES_PLAN.search(file.read_text("utf-8", "replace")) for file in files)


def leave_matrices_to_axzoo() -> None:
    """Makes Snakemake read no `--configfile`: it only passes the paths to the Snakefile, and axzoo reads the files."""
    from snakemake.settings import types

    types.load_configfile = lambda path: {}


def use_writable_cache(project: Path) -> None:
    """Moves Snakemake's cache into the project if the usual folder cannot be written."""
    from snakemake.common import get_appdirs

    try:
        folder = Path(get_appdirs().user_cache_dir, "snakemake/source-cache")
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        writable = False
    if not writable:
        os.environ["XDG_CACHE_HOME"] = str(project / ".snakemake/cache")
