"""Write envs/constraints.txt: one release of every package that axzoo and its extras need, transitive ones too.

Keeps the pins that pyproject.toml still allows and adds what is missing; --upgrade takes the newest releases instead.
pip resolves for the Python and the platform it runs on.
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
# One release of every package that axzoo and its extras need: pip install -c envs/constraints.txt .
# `make lock` writes this file from pyproject.toml, by Python {python} on {platform}. PyTorch's own requirements pin the
# CUDA packages that some of its builds need.
"""


def resolve(requirements: list[str], constraints: Path | None) -> list[str]:
    """The lines `name==version` of what pip would install into an empty environment, sorted by name."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", report.name, *(["-c", str(constraints)] if constraints else []), *requirements]
        if subprocess.run(command).returncode:
            sys.exit(f"pip found no releases that fit: if a pin in {LOCK.name} is in the way, remove its line")
        found = [item["metadata"] for item in json.load(report)["install"]]
    # Without the local part: 2.13.0+cpu and 2.13.0 are one release, built for different machines.
    found.sort(key=lambda item: item["name"].lower())
    return [f"{item['name']}=={item['version'].partition('+')[0]}" for item in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest releases")
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
