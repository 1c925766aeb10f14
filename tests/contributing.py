"""The worked examples of CONTRIBUTING.md as files on the disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(python|toml|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(heading: str) -> list[tuple[str, str]]:
    """The code blocks below a heading as (language, text)."""
    _, _, rest = (ROOT / "CONTRIBUTING.md").read_text().partition(f"\n## {heading}\n")
    section = rest.partition("\n## ")[0]
    blocks = _BLOCK.findall(section)
    assert blocks, f"CONTRIBUTING.md has no examples below {heading!r}"
    return blocks


def apply(heading: str, folder: Path) -> list[Path]:
    """Writes the blocks that begin with `# PATH` to that path inside `folder`, and applies the diffs; returns the files
    written."""
    written = []
    for language, text in examples(heading):
        if language == "diff":
            subprocess.run(["patch", "-p1", "--fuzz=0", "--silent"], input=text, text=True, cwd=folder, check=True)
            continue
        first, _, content = text.partition("\n")
        path = folder / first.removeprefix("# ")
        assert path.resolve().is_relative_to(folder.resolve())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        written.append(path)
    return written


def copy_sources(folder: Path) -> Path:
    """A copy of the source tree and the tests, to change. Returns its `src`, for PYTHONPATH."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / "src"


def install(project: Path, target: Path) -> None:
    """`pip install` into a folder, without an index."""
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(project)], check=True)
