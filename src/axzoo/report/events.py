"""Snakemake's plans and log records as plain data: planned jobs with their reasons, and the events of a run.

Only this module depends on Snakemake's objects, the fields of its log records and the wording of its messages.

Plans are made in a child process, `python -m axzoo.report.events TARGET...`, through Snakemake's Python API. It prints
one line of JSON per planned job. The caller does not import Snakemake.
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

from axzoo.core.console import open_standard_streams
from axzoo.core.errors import AxzooError
from axzoo.matrix.comparison import OUTDATED
from axzoo.report.failures import without_calls

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
    """Why a job runs. `kind` is the name of an attribute of Snakemake's class Reason, or the kind of a Difference from
    a receipt.

    `files` are the files concerned. `before` and `now` are the differences from the last run: param values for
    "params_changed", input files for "input_changed".
    """

    kind: str
    files: tuple[str, ...] = ()
    before: tuple[Any, ...] = ()
    now: tuple[Any, ...] = ()


@dataclass(frozen=True)
class PlannedJob:
    """A job that would run: its rule, wildcards, first output file and reasons.

    `awaits` lists the rules of the Snakemake checkpoints that run before it and may make it unnecessary.
    """

    rule: str
    wildcards: Mapping[str, str]
    file: str
    reasons: tuple[Reason, ...]
    awaits: tuple[str, ...]


def planned_jobs(targets: Sequence[str], matrix: Path | None) -> list[PlannedJob]:
    """The jobs that a build of `targets` would run, in the order of their dependencies.

    Rules without output, which only collect files, are omitted. If `matrix` is None, the Snakefile's default matrix is
    used. Raises AxzooError with Snakemake's message when Snakemake cannot make a plan.
    """
    command = [sys.executable, "-P", "-m", "axzoo.report.events"]
    command += [] if matrix is None else [f"--configfile={matrix}"]
    done = subprocess.run([*command, "--", *targets], capture_output=True, encoding="utf-8", errors="surrogateescape")
    if done.returncode:
        raise AxzooError(f"snakemake cannot plan this build:\n{without_calls(done.stderr.strip())}")
    return [_job_of(json.loads(line)) for line in done.stdout.splitlines()]


def _job_of(data: dict[str, Any]) -> PlannedJob:
    reasons = (Reason(r["kind"], tuple(r["files"]), tuple(r["before"]), tuple(r["now"])) for r in data["reasons"])
    return PlannedJob(data["rule"], data["wildcards"], data["file"], tuple(reasons), tuple(data["awaits"]))


def print_plan(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the child process: print the planned jobs, and Snakemake's errors on stderr. Returns the exit
    status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--configfile", type=Path)
    args = parser.parse_args(arguments)
    open_standard_streams()
    with contextlib.redirect_stdout(sys.stderr):  # a Snakefile may print; stdout is for the plan
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

    from axzoo.report.startup import leave_matrices_to_axzoo, use_writable_cache

    leave_matrices_to_axzoo()
    use_writable_cache(Path.cwd())
    # With these quiet settings, a dry run ends as soon as the plan is made: Snakemake does not visit each job.
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
        except Exception as error:  # Snakemake's command line handles exceptions in the same way
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
    """One Reason for each attribute of Snakemake's Reason that is set."""
    noted = _noted(job, dag)
    if reason.forced:  # this plan forces only interrupted jobs, and jobs whose files differ from their receipts
        changed = dag.workflow.persistence.params_changed(job) if noted else None  # says which inputs are others
        if changed:
            noted = tuple(reason for reason in noted if reason.kind != OUTDATED)
            return (*noted, _changed_params(changed))
        return noted or (Reason("incomplete_output", _names(dag.forcefiles.intersection(job.output))),)
    files = {kind: set(getattr(reason, kind)) for kind in _FILE_REASONS}
    files["updated_input"] -= files["updated_input_run"]
    found = [Reason(kind, _names(files[kind])) for kind in _FILE_REASONS if files[kind]]
    found += [Reason(kind) for kind in _PLAIN_REASONS if getattr(reason, kind)]
    if reason.input_changed:
        recorded = {file for output in job.output for file in dag.workflow.persistence.input(output) or ()}
        current = set(job.input)
        found.append(Reason("input_changed", before=_names(recorded - current), now=_names(current - recorded)))
    if changed := reason.params_changed:
        found.append(_changed_params(changed))
    return (*noted, *found)


def _changed_params(changed: Any) -> Reason:
    before, now = (tuple(map(_value, sorted(side))) for side in (changed.only_old, changed.only_new))
    return Reason("params_changed", before=before, now=now)


def _noted(job: Any, dag: Any) -> tuple[Reason, ...]:
    """Differences that the Snakefile found, by kind."""
    comparison = dag.workflow.globals.get("COMPARISON")
    found: dict[str, list[str]] = {}
    for difference in comparison.noted.get(job.output[0], ()) if comparison else ():
        found.setdefault(difference.kind, []).append(difference.file)
    return tuple(Reason(kind, _names(files)) for kind, files in found.items())


def _value(text: str) -> Any:
    """A param's value, parsed from the repr that Snakemake stores; the repr itself if it is not a JSON value."""
    try:
        value = ast.literal_eval(text)
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError):
        return text
    return value


def _names(files: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted(map(str, files), key=_natural))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts l2 before l10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


@dataclass(frozen=True)
class Planned:
    """The plan, sent when it is complete and again at the end of a dry run: number of jobs by rule, and "total"."""

    jobs: Mapping[str, int]


@dataclass(frozen=True)
class JobStarted:
    """`mem_mb` is the memory that the job requests, in MB."""

    jobid: int
    rule: str
    wildcards: Mapping[str, str]
    log: Path | None
    mem_mb: int | None = None


@dataclass(frozen=True)
class CommandShown:
    """A job's shell command. Snakemake's filter drops this event unless `--printshellcmds` is given."""

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
    """A job's shell command failed. `how` is the exit status or signal, `message` Snakemake's full message.

    The JobFailed event of the job follows in the same thread.
    """

    how: str
    message: str


@dataclass(frozen=True)
class JobFailed:
    jobid: int
    rule: str
    message: str
    facts: Mapping[str, Any]  # added by executors, such as the ID of a cluster job
    logs: tuple[Path, ...]
    command: str


class MessageKind(Enum):
    """The subject of a log record that is not an event."""

    NOTICE = auto()  # anything else; always shown
    ROUTINE = auto()  # logged in every run and of no use to the user
    UP_TO_DATE = auto()  # nothing to be done
    LOG_FILES = auto()  # the path of Snakemake's own log
    FAILURE_SUMMARY = auto()  # repeats at the end that jobs failed
    REASONS = auto()  # rules by reason, at the end of a dry run


@dataclass(frozen=True)
class LogMessage:
    """A log record without structured data. Its text is shown depending on `kind`."""

    kind: MessageKind


Event = Planned | JobStarted | CommandShown | JobFinished | Progress | CommandFailed | JobFailed | LogMessage

_ROUTINE_EVENTS = ("workflow_started", "resources_info", "job_started", "group_info", "rulegraph")
# Functions of Snakemake, as (module, name), whose INFO records without an event are all routine. Functions that also
# log useful messages are not listed.
ROUTINE_FUNCTIONS = {
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
LOG_FILES_FUNCTION = ("logging", "logfile_hint")
REASONS_FUNCTION = ("dag", "print_reasons")
# These messages are compared with the full text, because function and level do not distinguish them from others. If a
# later Snakemake words them differently, they are shown.
ROUTINE_MESSAGES = (
    "Select jobs to execute...",  # schedule() also logs interrupts
    "Shutting down, this might take some time.",
)
FAILURE_SUMMARY_MESSAGES = (
    "Exiting because a job execution failed. Look above for error messages",  # schedule() also logs other errors
    "WorkflowError:\nAt least one job did not complete successfully.",  # any other WorkflowError is shown
)
# Snakemake's error event contains the exception only as text. It ends with the message of Python's
# subprocess.CalledProcessError.
_COMMAND_FAILED = re.compile(
    r"RuleException:\nCalledProcessError in .*(returned non-zero exit status \S+|died with .+)\.\s*", re.DOTALL
)


def read_record(record: logging.LogRecord) -> Event:
    """Convert a Snakemake log record to an event. Raises KeyError when a field is missing."""
    data = vars(record)
    match str(data.get("event")):
        case "run_info":
            return Planned(data["stats"])
        case "job_info":
            log = next(iter(data["log"]), None)
            memory = (data.get("resources") or {}).get("mem_mb")
            path = None if log is None else Path(log)
            return JobStarted(data["jobid"], data["rule_name"], data["wildcards"], path, memory)
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
    return LogMessage(_kind(record))


def _kind(record: logging.LogRecord) -> MessageKind:
    """The kind of a message. Warnings and errors are notices, except the failure summary."""
    text = record.getMessage()
    if record.levelno >= logging.WARNING:
        return MessageKind.FAILURE_SUMMARY if text in FAILURE_SUMMARY_MESSAGES else MessageKind.NOTICE
    if vars(record).get("event") in _ROUTINE_EVENTS:
        return MessageKind.ROUTINE
    if vars(record).get("event") is not None or not record.pathname.startswith(_snakemake_folder()):
        return MessageKind.NOTICE
    origin = record.module, record.funcName
    if origin == LOG_FILES_FUNCTION:
        return MessageKind.LOG_FILES
    if origin == REASONS_FUNCTION:
        return MessageKind.REASONS
    if text == _up_to_date_message():
        return MessageKind.UP_TO_DATE
    return MessageKind.ROUTINE if origin in ROUTINE_FUNCTIONS or text in ROUTINE_MESSAGES else MessageKind.NOTICE


@cache
def _snakemake_folder() -> str:
    import snakemake

    return str(Path(snakemake.__file__).parent)


@cache
def _up_to_date_message() -> str:
    from snakemake.common import NOTHING_TO_BE_DONE_MSG

    return str(NOTHING_TO_BE_DONE_MSG)


if __name__ == "__main__":
    sys.exit(print_plan())
