#!/usr/bin/env python
"""Draw docs/build.svg, the picture of README.md: build config/demo.yaml in a new folder, as a terminal shows it.

    python scripts/picture.py [--output FILE]

Fetches the demo's checkpoint.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import shutil
import struct
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
COLUMNS, ROWS = 112, 40
COMMANDS = (
    ["snakemake", "--cores", "2", "--configfile", "config/demo.yaml"],
    ["axzoo", "report", "config/demo.yaml"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/build.svg")
    args = parser.parse_args()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("workflow", "config", "profiles", "Snakefile"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        for command in COMMANDS:
            console.print(Text(f"$ {' '.join(command)}", "bold"))
            for line in screen(run(command, Path(folder))):
                console.print(Text.from_ansi(line), soft_wrap=False)
    svg = console.export_svg(title="axzoo")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # a page must not load fonts from elsewhere
    args.output.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def run(command: list[str], folder: Path) -> str:
    """What the command writes to a terminal."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe(command[0], command, os.environ | {"PATH": path, "TERM": "xterm-256color"})  # noqa: S606
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    written = b""
    try:
        while block := os.read(terminal, 65536):
            written += block
    except OSError:  # Linux's way to say that the other end was closed
        pass
    _, status = os.waitpid(process, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{written.decode()}")
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that are on the terminal at the end. Knows the movements that progress bars use: up, erase line."""
    lines, row = [""], 0
    for piece in re.split(r"(\r\n|\n|\r|\x1b\[[0-9;?]*[A-Za-z])", written):
        if piece.endswith("\n"):
            row += 1
            if row == len(lines):
                lines.append("")
        elif match := re.fullmatch(r"\x1b\[(\d*)A", piece):
            row -= int(match[1] or 1)
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece == "\r" or re.fullmatch(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", piece):
            pass
        else:
            lines[row] += piece
    return [line for line in lines if line]


if __name__ == "__main__":
    main()
