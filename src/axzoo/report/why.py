"""What a build would do and the reason for each job, from Snakemake's own dry run, in words a user knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.matrix.document import read_document
from axzoo.parts.lock import Lock
from axzoo.parts.part import read_part

_TARGETS = ("all", "demo")
_FINGERPRINT = re.compile(r"'[0-9a-f]{16}'(, '[0-9a-f]{16}')*")
_PARAMS = "Params have changed since last execution:"
_BEFORE_NOW = re.compile(r"before: (.*?) now: (.*?) ?$")


@dataclass(frozen=True)
class PlannedJob:
    """A job that would run: its rule, the first file it makes, and Snakemake's reasons."""

    rule: str
    file: str
    reasons: tuple[str, ...]

    @property
    def hangs_on_a_lock(self) -> bool:
        """Whether it runs only if a lock, which is made anew first, finds its tensors changed."""
        updated = [reason for reason in self.reasons if reason.startswith("Input files updated by another job")]
        of_lock = [reason for reason in updated if re.search(r"results/locks/[^/]+/made_from\.json", reason)]
        return self.rule not in _TARGETS and len(of_lock) == len(self.reasons)


def dry_run(targets: Sequence[str], matrix: Path | None) -> str:
    """What `snakemake -n` says.

    Raises AxzooError when the matrix cannot be read, or, with Snakemake's words, when it refuses.
    """
    if matrix is not None:
        read_document(matrix)  # Snakemake's own reader answers with a traceback
    command = [sys.executable, "-P", "-m", "snakemake", *targets, "--dry-run", "--cores=1", "--nolock"]
    command += ["--workflow-profile=none", "--scheduler=greedy", "--rerun-incomplete", "--nocolor"]
    command += [] if matrix is None else [f"--configfile={matrix}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AxzooError(f"snakemake cannot plan this:\n{(done.stderr + done.stdout).strip()}")
    return done.stdout + done.stderr


def planned_jobs(said: str) -> list[PlannedJob]:
    """The jobs of a dry run, in its order."""
    jobs = []
    for block in re.split(r"^(?:\[.*\]\n)?(?:local)?(?:rule|checkpoint) ", said, flags=re.MULTILINE)[1:]:
        rule = block.partition(":")[0]
        facts = dict(re.findall(r"^    (\w+): (.*)$", block, re.MULTILINE))
        if rule not in _TARGETS and "reason" in facts:
            files = facts.get("output", "").split(", ")
            jobs.append(PlannedJob(rule, files[0], tuple(facts["reason"].split("; "))))
    return jobs


def in_words(reason: str) -> str:
    """One of Snakemake's reasons."""
    if reason.startswith(_PARAMS):
        found = _BEFORE_NOW.search(reason)
        before, now = found.groups() if found else ("", reason.removeprefix(_PARAMS).strip())
        if _FINGERPRINT.fullmatch(before) and _FINGERPRINT.fullmatch(now):
            return "axzoo's own code that decides it changed"
        return "its arguments changed: " + (_difference(_options(before), _options(now)) or f"{before} -> {now}")
    for said, words in (
        ("Missing output files", "missing"),
        ("Updated input files", "changed"),
        ("Input files updated by another job", "made again before it"),
        ("Set of input files has changed since last execution", "it depends on other files than last time"),
        ("Code has changed since last execution", "its command changed"),
    ):
        if reason.startswith(said):
            files = reason.removeprefix(said).lstrip(": ")
            return f"{words}: {_few(files.split(', '))}" if files else words
    return reason


def changed_tensors(folder: Path, lock: Lock) -> list[str]:
    """What `lock`, made now, changes of a model's lock in `folder`: a line for each part, with the tensors' names."""
    lines = []
    for part in lock.parts:
        path = folder / part.id.lock_file
        if not path.exists():
            lines.append(f"{path} is new")
            continue
        before = read_part(path)
        changed = [tensor.name for role, tensor in part.tensors.items() if before.tensors.get(role) != tensor]
        if changed:
            lines.append(f"{path.stem}: {_few(changed)} changed")
        elif dict(before.spec) != dict(part.spec):
            lines.append(f"{path.stem}: config.json changed what it computes")
    return lines


def _options(said: str) -> dict[str, str]:
    """The options in what Snakemake shows of a list of arguments, with their values; empty for anything else."""
    try:
        shown = ast.literal_eval(f"[{said}]")
    except (ValueError, SyntaxError):
        return {}
    options: dict[str, str] = {}
    name = ""
    for word in (str(word) for words in shown if isinstance(words, list) for word in words):
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            options[name] = value
        else:
            options[name] = f"{options.get(name, '')} {word}".strip()
    return options


def _difference(before: dict[str, str], now: dict[str, str]) -> str:
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name, 'not said')} -> {now.get(name, 'not said')}" for name in changed)


def _few(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
