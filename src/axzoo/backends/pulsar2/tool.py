"""The compiler as a program: which one it is, and how to start it on this machine or in a container.

Facts about the vendor's tools are in docs/vendor.md; nothing here was run with them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from axzoo.backends.pulsar2.options import Tool
from axzoo.backends.pulsar2.settings import TOOLS, Settings
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, write_json
from axzoo.core.stamps import Digests

logger = logging.getLogger(__name__)

WORK = Path("/data")
"""Where a container sees the private folder of a run."""

_LICENCE = ".hasplm"
_CONTAINER_LICENCE = Path("/root", _LICENCE)
_COPY_LICENCE = (
    f"mkdir -p {_CONTAINER_LICENCE}/installed/32434 && cp -n /root/*.v2c {_CONTAINER_LICENCE}/installed/32434/ "
    '2>/dev/null; exec "$@"'
)
"""The images have the licence in /root, and version 7.0 looks for it in this folder."""

_ASK_SECONDS, _KILL_SECONDS = 300, 60
_MAX_PROGRAM_BYTES = 16 << 20


@dataclass(frozen=True)
class Launch:
    """A command line, its environment, and the command that stops its container, if it has one."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    kill: tuple[str, ...] = ()


def launch(settings: Settings, words: Sequence[str], folder: Path | None, memory_mb: int = 0) -> Launch:
    """How to run `pulsar2 WORDS`. `folder`, if given, is the private folder of the run, with subfolders tmp and home.

    A container sees the folder as WORK. Its words must already have such paths (`inside`).
    """
    if not settings.in_container:
        program = (
            settings.target[:-1] if settings.launcher == "command" else (str(Path(settings.target[0], "bin/pulsar2")),)
        )
        environment = {**os.environ, **dict(settings.environment), "COLUMNS": "100"}
        if settings.launcher == "native":  # the package brings its own Python
            for name in ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"):
                environment.pop(name, None)
        if folder is not None:
            environment |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        return Launch((*program, *words), environment)
    variables = {**dict(settings.environment), "COLUMNS": "100"}
    if folder is not None:
        variables["TMPDIR"] = str(WORK / "tmp")
    script = ("-c", _COPY_LICENCE, "sh", "pulsar2", *words)
    mounts = [] if folder is None else [f"{folder.resolve()}:{WORK}"]
    mounts += [f"{Path(settings.licence).resolve()}:{_CONTAINER_LICENCE}"] if settings.licence else []
    (image,) = settings.target
    if settings.launcher == "apptainer":
        options = [word for mount in mounts for word in ("--bind", mount)]
        options += [word for item in variables.items() for word in ("--env", "=".join(item))]
        options += [] if folder is None else ["--pwd", str(WORK)]
        command = ["apptainer", "exec", "--fakeroot", "--containall", *options, image, "sh", *script]
        return Launch(tuple(command), dict(os.environ))
    name = _container_name()
    options = [word for mount in mounts for word in ("-v", mount)]
    options += [word for item in variables.items() for word in ("-e", "=".join(item))]
    options += [] if folder is None else ["-w", str(WORK)]
    options += ["--memory", f"{memory_mb}m"] if memory_mb else []
    run = (settings.launcher, "run", "--rm", "--name", name, "--network", "none", *options, "--entrypoint", "sh")
    return Launch((*run, image, *script), dict(os.environ), (settings.launcher, "kill", name))


def inside(settings: Settings, folder: Path, path: Path) -> str:
    """The path, which is in the private folder, as the tool sees it."""
    return str(WORK / path.relative_to(folder)) if settings.in_container else str(path.resolve())


def return_files(settings: Settings, folder: Path) -> None:
    """Gives files that a container wrote as another user to this one. Does nothing if there are none."""
    if settings.launcher not in ("docker", "podman") or not any(_is_foreign(path) for path in folder.rglob("*")):
        return
    owner, name = f"{os.getuid()}:{os.getgid()}", _container_name()
    run = [settings.launcher, "run", "--rm", "--name", name, "--network", "none", "-v", f"{folder.resolve()}:{WORK}"]
    run += ["--entrypoint", "chown", *settings.target, "-R", owner, str(WORK)]
    try:
        subprocess.run(run, capture_output=True, check=False, timeout=_ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:  # only a warning: the run's own error matters more
        kill_container((settings.launcher, "kill", name))
        logger.warning(f"{settings.shown} did not give the files in {folder} back to this user: {error!s:.200}")


def _container_name() -> str:
    return f"axzoo-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def kill_container(command: Sequence[str]) -> None:
    """Runs the command that ends a container. Does no harm if there is none, and nothing if `command` is empty."""
    if command:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, check=False, timeout=_KILL_SECONDS)


def _is_foreign(path: Path) -> bool:
    return path.lstat().st_uid != os.getuid()


def prepare_home(settings: Settings, folder: Path) -> None:
    """Creates the subfolders tmp and home. All runs on a machine share the user's licence folder."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "home").mkdir()
    licence = Path(settings.licence) if settings.licence else Path.home() / _LICENCE
    if settings.launcher == "native":
        licence.mkdir(parents=True, exist_ok=True)
    if licence.is_dir() and not settings.in_container:
        (folder / "home" / _LICENCE).symlink_to(licence.resolve(), target_is_directory=True)


@cache
def find_tool(settings: Settings) -> Tool:
    """Asks the compiler what it is. Answers of images are kept in the user's cache.

    Raises AxzooError when it cannot be run, states no version, or is not the one that the settings state.
    """
    build = _build(settings)
    is_image = settings.launcher in ("docker", "podman")
    file = _cache() / f"{hashlib.sha256(build.encode()).hexdigest()[:32]}-{settings.tool or 'any'}.json"
    tool = _read(file) if is_image else None
    if tool is None:
        tool = _ask(settings, build)
        if is_image:
            with suppress(OSError):
                write_json(file, asdict(tool))
    for key, stated, found in (
        ("tool", settings.tool, tool.name),
        ("version", settings.version, tool.version),
        ("build", settings.build, tool.build),
    ):
        if stated and stated != found:
            raise AxzooError(
                f"{settings.shown} has {key} {found!r} on this machine, but the build was planned with {stated!r}: "
                f"install the same compiler everywhere, or run the build again"
            )
    return tool


def _read(file: Path) -> Tool | None:
    try:
        data = read_json(file)
        lists = (tuple(map(str, data[key])) for key in ("options", "chips"))
        return Tool(str(data["name"]), str(data["version"]), str(data["build"]), *lists)
    except (AxzooError, OSError, KeyError, TypeError):
        return None


def _build(settings: Settings) -> str:
    """The image's id, or the digest of its file or of the program's file; "" if none is known."""
    if settings.launcher in ("docker", "podman"):
        (image,) = settings.target
        words = [settings.launcher, "image", "inspect", "--format", "{{.Id}}", image]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_ASK_SECONDS)
        except FileNotFoundError:
            raise AxzooError(f"{settings.launcher} is not installed on this machine: {_OTHERWISE}") from None
        except OSError as error:
            raise AxzooError(f"{settings.launcher} cannot be run ({error.strerror}): {_OTHERWISE}") from None
        except subprocess.TimeoutExpired:
            raise AxzooError(
                f"{settings.launcher} did not answer within {_ASK_SECONDS} s: start its service, and check with "
                f"`{settings.launcher} info` that this user may use it"
            ) from None
        if done.returncode and "daemon" in done.stderr.lower() and "no such image" not in done.stderr.lower():
            raise AxzooError(
                f"{settings.launcher} does not answer ({_last_line(done.stderr)}): start its service, and check with "
                f"`{settings.launcher} info` that this user may use it"
            )
        if done.returncode:
            raise AxzooError(
                f"{settings.launcher} has no image {image} ({_last_line(done.stderr)}): load it with "
                f"`{settings.launcher} load -i FILE`, or name another one; `{settings.launcher} images` lists them"
            )
        return done.stdout.strip()
    if settings.launcher == "apptainer":
        return _digest_of_image(Path(settings.target[0]))
    program = Path(settings.target[0], "bin/pulsar2") if settings.launcher == "native" else settings.target[0]
    found = shutil.which(program)
    with suppress(OSError):  # programs that may be run, but not read
        if found and 0 < Path(found).stat().st_size <= _MAX_PROGRAM_BYTES:
            return hashlib.sha256(Path(found).read_bytes()).hexdigest()[:16]
    return ""


def _digest_of_image(file: Path) -> str:
    """The digest of an image file, which is read again only if its stamp changed; "" for a folder or an address."""
    if not file.is_file():
        return ""
    digests = Digests(_cache() / "images.json")
    try:
        digest = digests.sha256(file)
    except OSError as error:
        raise AxzooError(f"{file} cannot be read ({error.strerror}): give this user permission to read it") from None
    with suppress(OSError):
        digests.save()
    return f"sha256:{digest}"


def _cache() -> Path:
    """The user's folder for what is known of compilers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "axzoo", "compilers")


_OTHERWISE = (
    "install it, or choose another launcher (docs/vendor.md); to plan on a machine without the compiler, state its "
    "`version` in `compiler`"
)


def _ask(settings: Settings, build: str) -> Tool:
    version = ""
    for words in (["version"], ["--version"]):
        status, text = _answer(settings, words)
        found = re.search(r"version[:\s]+v?([\w.+-]+)|(\d+\.\d[\w.+-]*)", text, re.IGNORECASE)
        if status == 0 and found:
            commit = re.search(r"commit[:\s]+(\w+)", text, re.IGNORECASE)
            version = (found[1] or found[2]) + (f" ({commit[1]})" if commit else "")
            break
    if not version:
        raise AxzooError(
            f"{settings.shown} states no version ({_last_line(text) or f'exit status {status}'}): is it the Pulsar2 "
            f"compiler? Otherwise, let its `version` print one{_of_paths(settings)}"
        )
    for name in [settings.tool] if settings.tool else TOOLS:
        status, text = _answer(settings, [*settings.verb(name), "--help"])
        if status == 0 and "--input_path" in text:
            options = tuple(sorted(set(re.findall(r"--[a-z][a-z_0-9]+", text))))
            chips = re.search(r"--chip[ =]\{([A-Z0-9,]+)\}", text)
            return Tool(name, version, build, options, tuple(chips[1].split(",")) if chips else ())
    raise AxzooError(f"{settings.shown} (version {version}) has neither {' nor '.join(TOOLS)}: {_last_line(text)}")


def _of_paths(settings: Settings) -> str:
    """What else to do about a command that names a file of this folder without its whole path."""
    relative = [word for word in settings.target[1:-1] if settings.launcher == "command" and Path(word).is_file()]
    return "; paths in `command` must be absolute" if any(not Path(word).is_absolute() for word in relative) else ""


def _answer(settings: Settings, words: list[str]) -> tuple[int, str]:
    """The exit status and output of a question. It is asked in another folder, as jobs run the compiler, so that a path
    that jobs would not find is not found here either."""
    start = launch(settings, words, None)
    try:
        done = subprocess.run(
            start.command,
            cwd="/",
            env=start.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=_ASK_SECONDS,
        )
    except subprocess.TimeoutExpired:
        kill_container(start.kill)
        raise AxzooError(f"{settings.shown} did not answer `{words[-1]}` within {_ASK_SECONDS} s") from None
    except OSError as error:
        raise AxzooError(f"{settings.shown} cannot be run ({error.strerror}): {_OTHERWISE}") from None
    return done.returncode, done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][-200:] if lines else ""
