"""What Snakemake says, as plain data: the jobs it plans and the reason for each, and the log records of a run.

No other module knows Snakemake's objects, the fields of its records or its sentences.

Plans come from a child process, `python -m axzoo.report.events TARGET...`: Snakemake's own Python API makes the plan
there, and each planned job is one line of JSON. Nothing of Snakemake is imported into the caller.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError

_FILE_REASONS = ("missing_output", "incomplete_output", "updated_input", "updated_input_run")
_PLAIN_REASONS = (
    "code_changed",
    "software_stack_changed",
    "noio",
    "nooutput",
    "pipe",
    "service",
    "unfinished_queue_input",
)


@dataclass(frozen=True)
class Reason:
    """Why a job runs. `kind` is the attribute's name in Snakemake's class Reason.

    `files` are the files it speaks of. `before` and `now` are what differs from the last run: param values for
    "params_changed", input files for "input_changed".
    """

    kind: str
    files: tuple[str, ...] = ()
    before: tuple[Any, ...] = ()
    now: tuple[Any, ...] = ()


@dataclass(frozen=True)
class PlannedJob:
    """A job that would run: its rule, wildcards, first output file and reasons.

    `awaits` are the rules of the Snakemake checkpoints among its inputs that run before it and may spare it.
    """

    rule: str
    wildcards: Mapping[str, str]
    file: str
    reasons: tuple[Reason, ...]
    awaits: tuple[str, ...]


def planned_jobs(targets: Sequence[str], matrix: Path | None) -> list[PlannedJob]:
    """The jobs that a build of `targets` would run, in the order of their dependencies; rules without output, which
    only collect files, are omitted. `matrix` None: the Snakefile's own.

    Raises AxzooError with Snakemake's message when Snakemake cannot make a plan.
    """
    command = [sys.executable, "-P", "-m", "axzoo.report.events"]
    command += [] if matrix is None else [f"--configfile={matrix}"]
    done = subprocess.run([*command, "--", *targets], capture_output=True, text=True)
    if done.returncode:
        raise AxzooError(f"snakemake cannot plan this:\n{done.stderr.strip()}")
    return [_job_of(json.loads(line)) for line in done.stdout.splitlines()]


def _job_of(data: dict[str, Any]) -> PlannedJob:
    reasons = (Reason(r["kind"], tuple(r["files"]), tuple(r["before"]), tuple(r["now"])) for r in data["reasons"])
    return PlannedJob(data["rule"], data["wildcards"], data["file"], tuple(reasons), tuple(data["awaits"]))


def print_plan(arguments: Sequence[str] | None = None) -> int:
    """The child process: prints the planned jobs. Returns its exit status; Snakemake's refusals go to stderr."""
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--configfile", type=Path)
    args = parser.parse_args(arguments)
    with contextlib.redirect_stdout(sys.stderr):  # what a Snakefile prints is no part of the plan
        jobs = _plan(args.targets, [args.configfile] if args.configfile else [])
    if jobs is None:
        return 1
    for job in jobs:
        print(json.dumps(asdict(job)))
    return 0


def _plan(targets: Sequence[str], configfiles: Sequence[Path]) -> list[PlannedJob] | None:
    from snakemake.api import SnakemakeApi
    from snakemake.logging import logger
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        ExecutionSettings,
        OutputSettings,
        ResourceSettings,
    )

    # A dry run as quiet as this ends when the plan is made: Snakemake does not walk through the jobs.
    output = OutputSettings(dryrun=True, nocolor=True, quiet={Quietness.RULES, Quietness.PROGRESS})
    with SnakemakeApi(output) as api:
        logger.setLevel(logging.WARNING)
        try:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=1), config_settings=ConfigSettings(configfiles=configfiles)
            )
            plan = workflow.dag(DAGSettings(targets=set(targets), force_incomplete=True))
            plan.execute_workflow(executor="dryrun", execution_settings=ExecutionSettings(lock=False))
            return list(_jobs_in(workflow._workflow.dag))
        except Exception as error:  # as Snakemake's command line does: it knows how to word each of them
            api.print_exception(error)
            return None


def _jobs_in(dag: Any) -> Iterator[PlannedJob]:
    planned = {job for job in dag.needrun_jobs(exclude_finished=False) if job.output}
    rules = {rule: i for i, rule in enumerate(dag.workflow.rules)}
    for level in dag.toposorted(planned):
        for job in sorted(level, key=lambda job: (rules[job.rule], _natural(job.output[0]))):
            upstream = {other for other in dag.dependencies[job] if other in planned}
            awaits = sorted({other.rule.name for other in upstream if other.rule.is_checkpoint})
            reasons = _reasons(dag.reason(job), job, dag)
            yield PlannedJob(job.rule.name, dict(job.wildcards_dict), str(job.output[0]), reasons, tuple(awaits))


def _reasons(reason: Any, job: Any, dag: Any) -> tuple[Reason, ...]:
    """Snakemake's Reason, as a reason for each of its attributes that is set."""
    if reason.forced:  # this plan forces nothing else than jobs that were interrupted
        return (Reason("incomplete_output", _names(dag.forcefiles.intersection(job.output))),)
    files = {kind: set(getattr(reason, kind)) for kind in _FILE_REASONS}
    files["updated_input"] -= files["updated_input_run"]
    found = [Reason(kind, _names(files[kind])) for kind in _FILE_REASONS if files[kind]]
    found += [Reason(kind) for kind in _PLAIN_REASONS if getattr(reason, kind)]
    if reason.input_changed:
        recorded = {file for output in job.output for file in dag.workflow.persistence.input(output) or ()}
        current = set(job.input)
        found.append(Reason("input_changed", before=_names(recorded - current), now=_names(current - recorded)))
    if changed := reason.params_changed:
        before, now = (tuple(map(_value, sorted(side))) for side in (changed.only_old, changed.only_new))
        found.append(Reason("params_changed", before=before, now=now))
    return tuple(found)


def _value(written: str) -> Any:
    """A param's value from its repr, which is what Snakemake keeps; the repr itself where JSON has no such value."""
    try:
        value = ast.literal_eval(written)
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError):
        return written
    return value


def _names(files: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted(map(str, files), key=_natural))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts l2 before l10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


@dataclass(frozen=True)
class Planned:
    """The plan is made, or, at the end of a dry run, shown: jobs by rule, and their "total"."""

    jobs: Mapping[str, int]


@dataclass(frozen=True)
class JobStarted:
    jobid: int
    rule: str
    wildcards: Mapping[str, str]
    log: Path | None


@dataclass(frozen=True)
class CommandShown:
    """A job's command. Snakemake's filter passes it only with `--printshellcmds`."""

    command: str


@dataclass(frozen=True)
class JobFinished:
    jobid: int


@dataclass(frozen=True)
class Progress:
    done: int
    total: int


@dataclass(frozen=True)
class CommandFailed:
    """A job's command failed: how, and Snakemake's full message. The job's own JobFailed follows in the same thread."""

    how: str
    message: str


@dataclass(frozen=True)
class JobFailed:
    jobid: int
    rule: str
    message: str
    facts: Mapping[str, Any]  # what an executor adds: the id of a cluster's job
    logs: tuple[Path, ...]
    command: str


class Kind(Enum):
    """What a record without data for axzoo is about."""

    NOTICE = auto()  # anything else: to be shown
    CHATTER = auto()  # said in every run, and nothing a user acts on
    IDLE = auto()  # everything is up to date
    LOG_FILES = auto()  # where Snakemake's own log lies
    EPILOGUE = auto()  # after failures that were shown: that there were failures
    REASONS = auto()  # at the end of a dry run: rules by reason


@dataclass(frozen=True)
class Said:
    kind: Kind


Event = Planned | JobStarted | CommandShown | JobFinished | Progress | CommandFailed | JobFailed | Said

_CHATTER_EVENTS = ("workflow_started", "resources_info", "job_started", "group_info", "rulegraph")
# Functions of Snakemake, by module and name, that log at level INFO and without an event. A function that also says
# things worth reading is not here.
CHATTER_FROM = {
    ("api", "execute_workflow"),
    ("workflow", "_build_dag"),
    ("workflow", "execute"),
    ("workflow", "log_workflow_runtime"),
    ("dag", "handle_touch"),
    ("dag", "handle_temp"),
    ("dag", "update_checkpoint_dependencies"),
    ("jobs", "cleanup"),
    ("jobs", "log_info"),
}
LOG_FILES_FROM = ("logging", "logfile_hint")
REASONS_FROM = ("dag", "print_reasons")
# Sentences compared whole, because nothing else tells their records from others of the same function and level. If
# Snakemake words them differently one day, they are shown: nothing is lost.
CHATTER_SENTENCES = (
    "Select jobs to execute...",  # schedule() also says that it was interrupted
    "Shutting down, this might take some time.",
)
EPILOGUE_SENTENCES = (
    "Exiting because a job execution failed. Look above for error messages",  # schedule() also reports bugs
    "WorkflowError:\nAt least one job did not complete successfully.",  # any other WorkflowError is news
)
# Snakemake's error event holds the exception as text only. The words at its end are those of Python's own
# subprocess.CalledProcessError.
_COMMAND_FAILED = re.compile(
    r"RuleException:\nCalledProcessError in .*(returned non-zero exit status \S+|died with .+)\.\s*", re.DOTALL
)


def read_record(record: logging.LogRecord) -> Event:
    """What a record of Snakemake's log says. Raises KeyError when its event lacks a field."""
    data = vars(record)
    match str(data.get("event")):
        case "run_info":
            return Planned(data["stats"])
        case "job_info":
            log = next(iter(data["log"]), None)
            return JobStarted(data["jobid"], data["rule_name"], data["wildcards"], None if log is None else Path(log))
        case "shellcmd":
            return CommandShown(data.get("cmd") or data.get("shellcmd") or "")
        case "job_finished":
            return JobFinished(data["job_id"])
        case "progress":
            return Progress(data["done"], data["total"])
        case "job_error":
            logs = tuple(map(Path, data["log"]))
            message, command = data["rule_msg"] or "", data["shellcmd"] or ""
            return JobFailed(data["jobid"], data["rule_name"], message, data["aux"], logs, command)
        case "error" if failed := _COMMAND_FAILED.fullmatch(record.getMessage()):
            return CommandFailed(failed[1], record.getMessage())
    return Said(_kind(record))


def _kind(record: logging.LogRecord) -> Kind:
    """The kind of a record. Of warnings and errors, only the epilogue is anything but a notice."""
    text = record.getMessage()
    if record.levelno >= logging.WARNING:
        return Kind.EPILOGUE if text in EPILOGUE_SENTENCES else Kind.NOTICE
    if vars(record).get("event") in _CHATTER_EVENTS:
        return Kind.CHATTER
    if vars(record).get("event") is not None or not record.pathname.startswith(_snakemake_folder()):
        return Kind.NOTICE
    origin = record.module, record.funcName
    if origin == LOG_FILES_FROM:
        return Kind.LOG_FILES
    if origin == REASONS_FROM:
        return Kind.REASONS
    if text == _idle_sentence():
        return Kind.IDLE
    return Kind.CHATTER if origin in CHATTER_FROM or text in CHATTER_SENTENCES else Kind.NOTICE


@cache
def _snakemake_folder() -> str:
    import snakemake

    return str(Path(snakemake.__file__).parent)


@cache
def _idle_sentence() -> str:
    from snakemake.common import NOTHING_TO_BE_DONE_MSG

    return str(NOTHING_TO_BE_DONE_MSG)


if __name__ == "__main__":
    sys.exit(print_plan())
