"""The settings of backend pulsar2: which compiler to run, and how. Snakemake imports this module while it plans."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json

LAUNCHERS = ("docker", "podman", "apptainer", "native", "command")
TOOLS = ("llm_build", "llm_build2")
VARIABLE = "AXZOO_COMPILER"
"""The environment variable that stands in for the matrix key `compiler`."""

RECORDED = ("FLOAT_MATMUL_USE_CONV_EU",)
"""Variables of the user's environment that change what the compiler writes."""

_EXAMPLES = "docker:IMAGE, podman:IMAGE, apptainer:FILE, native:FOLDER or 'command:PROGRAM llm_build'"


@dataclass(frozen=True)
class Settings:
    """How to run the compiler. `launcher` is one of LAUNCHERS, `target` the image, file, folder or command.

    Files and folders are absolute paths; relative ones are those of the folder in which the settings were read.
    `tool`, `version` and `build` say which compiler it must be; they are empty until it was asked, unless the user
    states them. `options` are passed to it as they are, `environment` are variables. `licence` is a folder with the
    content of ~/.hasplm. `memory_mb` and `minutes` limit one run; 0: estimated from the number of parameters.
    """

    launcher: str
    target: tuple[str, ...]
    tool: str = ""
    version: str = ""
    build: str = ""
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    licence: str = ""
    memory_mb: int = 0
    minutes: int = 0

    @property
    def in_container(self) -> bool:
        return self.launcher in ("docker", "podman", "apptainer")

    @property
    def shown(self) -> str:
        """How messages name the compiler."""
        return f"{self.launcher}:{shlex.join(self.target) if len(self.target) > 1 else self.target[0]}"

    def verb(self, tool: str) -> tuple[str, ...]:
        """The word that starts this tool; a command may spell it with a dash."""
        return (self.target[-1] if self.launcher == "command" else tool,)

    def stating(self, tool: str, version: str, build: str) -> Settings:
        """The settings for jobs, which refuse any other compiler."""
        return replace(self, tool=tool, version=version, build=build)

    def to_json(self) -> str:
        """Canonical JSON; `read_settings` reads it."""
        target: Any = list(self.target) if self.launcher == "command" else self.target[0]
        stated = {key: getattr(self, key) for key in ("tool", "version", "build", "licence", "memory_mb", "minutes")}
        given = {key: value for key, value in stated.items() if value}
        options = {"options": list(self.options)} if self.options else {}
        return canonical_json({self.launcher: target, "environment": dict(self.environment), **options, **given})


_TEXTS = ("tool", "version", "build", "licence")
_NUMBERS = ("memory_mb", "minutes")
_KEYS = (*LAUNCHERS, "options", "environment", *_TEXTS, *_NUMBERS)


def read_settings(compiler: str | Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings from the matrix key `compiler`, the option `--compiler`, or the environment.

    Variables in RECORDED are taken from the environment unless the settings have a key `environment`. Raises AxzooError
    when no compiler is named, or the settings are not valid.
    """
    where = "compiler"
    if compiler is None:
        compiler, where = environ.get(VARIABLE), VARIABLE
        if not compiler:
            raise AxzooError(
                f"backend pulsar2 needs a compiler: give `compiler` in the matrix, --compiler or ${VARIABLE}, such as "
                f"{_EXAMPLES}"
            )
    try:
        return _parsed(_mapping(compiler) if isinstance(compiler, str) else compiler, environ)
    except ValueError as error:
        raise AxzooError(f"{where}: {error}") from None


def _mapping(text: str) -> dict[str, Any]:
    """Settings given as LAUNCHER:TARGET, or as a JSON object."""
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except (ValueError, RecursionError):
            raise ValueError(f"{text:.80} is not valid JSON") from None
    launcher, colon, target = text.partition(":")
    if launcher not in LAUNCHERS or not colon or not target.strip():
        raise ValueError(f"{text!r:.80} names no compiler: give {_EXAMPLES}")
    return {launcher: shlex.split(target) if launcher == "command" else target}


def _parsed(given: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Raises ValueError when a setting is not valid."""
    if unknown := [key for key in given if key not in _KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r:.80}: use one of {', '.join(_KEYS)}")
    launchers = [key for key in LAUNCHERS if key in given]
    if len(launchers) != 1:
        raise ValueError(f"give exactly one of {', '.join(LAUNCHERS)}, not {' and '.join(launchers) or 'none of them'}")
    (launcher,) = launchers
    target = _words(launcher, given[launcher] if launcher == "command" else [given[launcher]])
    if not target or any(word.startswith("-") for word in target[:1]):
        raise ValueError(f"{launcher} is {given[launcher]!r:.80}, but must name a compiler, such as {_EXAMPLES}")
    for key in _TEXTS:
        _require(type(given.get(key, "")) is str and "\0" not in given.get(key, ""), key, given, "text")
    for key in _NUMBERS:
        _require(type(given.get(key, 0)) is int and 0 <= given.get(key, 0) < 1 << 31, key, given, "a whole number")
    tool = given.get("tool", "")
    if launcher == "command":
        verb = target[-1].replace("-", "_")
        if verb not in TOOLS or tool not in ("", verb):
            raise ValueError(f"command is {shlex.join(target)!r:.80}, but must end in {' or '.join(TOOLS)}")
        tool = verb
    _require(tool in ("", *TOOLS), "tool", given, " or ".join(TOOLS))
    variables = given.get("environment", {name: environ[name] for name in RECORDED if name in environ})
    _require(isinstance(variables, Mapping), "environment", given, "a mapping of names to text")
    names = _words("environment", list(variables))
    values = _words("environment", list(variables.values()))
    _require(all(name.isidentifier() for name in names), "environment", given, "a mapping of names to text")
    stated = {key: given[key] for key in (*_TEXTS[1:], *_NUMBERS) if key in given}
    if stated.get("licence"):
        stated["licence"] = str(Path(stated["licence"]).absolute())
    return Settings(
        launcher=launcher,
        target=_with_absolute_path(launcher, target),
        tool=tool,
        options=_words("options", given.get("options", [])),
        environment=tuple(sorted(zip(names, values, strict=True))),
        **stated,
    )


def _with_absolute_path(launcher: str, target: tuple[str, ...]) -> tuple[str, ...]:
    """The target with its file or folder as an absolute path, because the compiler runs in a folder of its own."""
    first, *rest = target
    is_path = launcher == "native" or (launcher == "apptainer" and "://" not in first)
    if is_path or (launcher == "command" and "/" in first):
        return (str(Path(first).absolute()), *rest)
    return target


def _words(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or any(
        not isinstance(word, str | int) or "\0" in str(word) for word in value
    ):
        raise ValueError(f"{key} is {value!r:.80}, but must be text: put it in quotes")
    return tuple(map(str, value))


def _require(valid: bool, key: str, given: Mapping[str, Any], wanted: str) -> None:
    if not valid:
        raise ValueError(f"{key} is {given[key]!r:.80}, but must be {wanted}")
