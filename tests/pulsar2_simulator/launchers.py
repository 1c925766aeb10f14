"""A simulator of the command lines of docker, podman and apptainer, whose only image has the simulated compiler.

`install` puts them into a folder for PATH. Environment variables: SIMULATOR_CONTAINERS, a folder with one file per
running container; SIMULATOR_CALLS as for the compiler. A container is a process outside of its client's group, so that
it survives its client, as real ones do. With SIMULATOR_NO_SERVICE, no service answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

IMAGE = "pulsar2:7.0-lite"
SIMULATOR = Path(__file__).with_name("simulator.py")


def install(folder: Path) -> Path:
    """Writes the programs. Returns the folder."""
    folder.mkdir(parents=True)
    for name in ("docker", "podman", "apptainer"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)
    return folder


def parse(words: list[str], flags: tuple[str, ...]) -> tuple[list[tuple[str, str]], list[str]]:
    """Options with their values, and the rest from the image on."""
    options = []
    while words[0].startswith("-"):
        if words[0] in flags:
            options.append((words.pop(0), ""))
        else:
            options.append((words.pop(0), words.pop(0)))
    return options, words


def run(words: list[str], flags: tuple[str, ...]) -> int:
    options, (image, *inside) = parse(words, flags)
    if image != IMAGE and not image.endswith(".sif"):
        print(f"Unable to find image '{image}' locally", file=sys.stderr)
        return 125
    mounts = [value.split(":") for key, value in options if key in ("-v", "--bind")]
    named = dict(options)
    entry = [named["--entrypoint"]] if "--entrypoint" in named else []
    program = [*entry, *inside]
    if program[:2] == ["sh", "-c"]:
        program = program[4:]  # the script copies licences of the image, and runs the rest
    program = [outside(word, mounts) for word in program]
    if program[0] == "pulsar2":
        program = [sys.executable, str(SIMULATOR), *program[1:]]
    variables = dict(value.split("=", 1) for key, value in options if key in ("-e", "--env"))
    passed = {key: value for key, value in os.environ.items() if key.startswith("SIMULATOR_") or key == "PATH"}
    folder = outside(named.get("-w") or named.get("--pwd") or "/", mounts)
    own = {key: outside(value, mounts) for key, value in variables.items()}
    record(words=sys.argv[1:])
    container = subprocess.Popen(program, cwd=folder, env=passed | own, start_new_session="--name" in named)
    state = Path(os.environ["SIMULATOR_CONTAINERS"], named.get("--name", "unnamed"))
    state.write_text(str(container.pid))
    status = container.wait()
    state.unlink(missing_ok=True)
    return 128 - status if status < 0 else status


def outside(word: str, mounts: list[list[str]]) -> str:
    for host, guest in mounts:
        if word == guest or word.startswith(f"{guest}/"):
            return host + word.removeprefix(guest)
    return word


def kill(name: str) -> int:
    state = Path(os.environ["SIMULATOR_CONTAINERS"], name)
    if not state.exists():
        print(f"Error response from daemon: No such container: {name}", file=sys.stderr)
        return 1
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(state.read_text()), signal.SIGKILL)
    state.unlink()
    return 0


def record(**call: object) -> None:
    if calls := os.environ.get("SIMULATOR_LAUNCHES"):
        with Path(calls).open("a") as file:
            file.write(json.dumps(call) + "\n")


def main(program: str, words: list[str]) -> int:
    if program == "apptainer" and words[0] == "exec":
        return run(words[1:], ("--fakeroot", "--containall"))
    if words[:2] == ["image", "inspect"]:
        if "SIMULATOR_NO_SERVICE" in os.environ:
            print("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", file=sys.stderr)
            return 1
        if words[-1] != IMAGE:
            print(f"Error: No such image: {words[-1]}", file=sys.stderr)
            return 1
        print("sha256:" + "7a" * 32)
        return 0
    if words[0] == "run":
        return run(words[1:], ("--rm",))
    if words[0] == "kill":
        return kill(words[1])
    print(f"{program}: {words[0]!r} is not simulated", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
