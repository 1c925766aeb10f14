"""Debian packages, written by dpkg-deb: equal contents give equal bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.core.files import temporary_path

TIME = 1_700_000_000
"""The date of all files in a package, unless SOURCE_DATE_EPOCH says otherwise."""

MEMBER_LIMIT = 9_999_999_999
"""The largest member, in bytes, of the ar archive that a .deb is: its size has ten decimal digits."""


@dataclass(frozen=True)
class DebianPackage:
    """A package's control fields, in order, and its maintainer scripts by name."""

    control: Mapping[str, str]
    scripts: Mapping[str, str]

    @property
    def file_name(self) -> str:
        return f"{self.control['Package']}_{self.control['Version']}_{self.control['Architecture']}.deb"

    def write(self, tree: Path, output: Path) -> None:
        """Packs the files in the folder `tree`, which are installed in /. Adds DEBIAN/ to the tree.

        All files belong to root. Raises AxzooError when dpkg-deb is missing or fails.
        """
        program = shutil.which("dpkg-deb")
        if program is None:
            raise AxzooError("dpkg-deb is missing, which writes Debian packages: install dpkg, also available on macOS")
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        if size > MEMBER_LIMIT:
            raise AxzooError(
                f"{output.name} would hold {size / 1e9:.1f} GB, and a .deb file can hold 10: use s4 weights or copy "
                f"the bundle to the board as a folder"
            )
        self._write_control(tree, size)
        environment = {"SOURCE_DATE_EPOCH": str(TIME), **os.environ}
        with temporary_path(output) as temporary:
            command = [program, "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(temporary)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise AxzooError(f"dpkg-deb cannot write {output}: {done.stderr.strip()[-500:]}")
            temporary.chmod(0o644)
            temporary.replace(output)

    def _write_control(self, tree: Path, size: int) -> None:
        folder = tree / "DEBIAN"
        folder.mkdir()
        fields = {**self.control, "Installed-Size": str(-(-size // 1024))}
        order = [name for name in fields if name != "Description"] + ["Description"]
        (folder / "control").write_text("".join(f"{name}: {fields[name]}\n" for name in order))
        for name, text in self.scripts.items():
            (folder / name).write_text(text)
        for path in (tree, *tree.rglob("*")):
            path.chmod(0o755 if path.is_dir() or (path.parent == folder and path.name in self.scripts) else 0o644)
