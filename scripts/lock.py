"""Write envs/constraints.txt: a pinned release of every package that axzoo and its extras need, directly or indirectly.

Existing pins that pyproject.toml allows are kept, and missing ones are added; with --upgrade, all packages are pinned
to their newest releases. pip resolves for the Python version and platform that it runs on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "envs/constraints.txt"
HEAD = """\
# A pinned release of every package that axzoo and its extras need: pip install -c envs/constraints.txt .
# `make lock` writes this file from pyproject.toml, with Python {python} on {platform}. The CUDA packages that some
# builds of PyTorch need are not listed: PyTorch's own requirements pin them.
"""


def resolve(requirements: list[str], constraints: Path | None) -> list[str]:
    """What pip would install into an empty environment, as lines `name==version` sorted by name."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", report.name, *(["-c", str(constraints)] if constraints else []), *requirements]
        if subprocess.run(command).returncode:
            sys.exit(f"pip found no compatible releases: if a pin in {LOCK.name} conflicts, remove its line")
        found = [item["metadata"] for item in json.load(report)["install"]]
    # Without the local version: 2.13.0+cpu and 2.13.0 are builds of the same release.
    found.sort(key=lambda item: item["name"].lower())
    return [f"{item['name']}=={item['version'].partition('+')[0]}" for item in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="pin the newest releases")
    args = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        requirements += [line for line in extra if not re.match(r"axzoo\b", line)]
    lines = resolve(requirements, None if args.upgrade or not LOCK.exists() else LOCK)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    LOCK.write_text(HEAD.format(python=python, platform=sys.platform) + "\n".join(lines) + "\n")
    print(f"{LOCK.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()
