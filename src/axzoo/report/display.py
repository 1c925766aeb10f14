"""The progress display of a build, driven by Snakemake's events.

It shows one bar per stage, log lines with timestamps, and a short description of each failure. Messages that
`axzoo.report.events` does not recognize are printed in full.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import TaskID
from rich.text import Text
from snakemake.logging import DefaultFilter, is_quiet_about
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase

from axzoo.core.console import SUCCESS, format_elapsed, log_to_console, open_console, stage_bars
from axzoo.core.machine import out_of_memory_kills
from axzoo.matrix.batches import stage_of
from axzoo.parts.kinds import KINDS
from axzoo.report.events import (
    CommandFailed,
    CommandShown,
    JobFailed,
    JobFinished,
    JobStarted,
    LogMessage,
    MessageKind,
    Planned,
    Progress,
    read_record,
)
from axzoo.report.failures import (
    append_line,
    config_block,
    display_path,
    end_of,
    log_tail,
    without_calls,
    without_control,
)

STAGES = {
    "fetch": "fetching checkpoints",
    "lock": "locking checkpoints",
    "calibrate": "calibrating",
    **{kind.name: kind.label for kind in KINDS},
    "bundle": "bundling",
    "check_layers": "checking layers",
    "check_generation": "checking generation",
    "check_vision": "checking vision model",
    "check_weights": "checking weights",
}
"""Labels by stage. A stage without a label is shown by the name of its rule."""

CONFIG_RULE = "lock"  # its log contains the model's Config(...) block, which is shown on a terminal
TARGETS = ("all", "demo")  # rules that only collect files and are not stages
SHOWN_AFTER = {"post": "layer"}  # stages whose final line follows another's, in the order of the vendor's tool

_HOW_TO_LIST_JOBS = "    (snakemake -np lists the jobs)"


@dataclass
class _Stage:
    """Progress of one stage over all models. Times are seconds since the epoch, as in log records."""

    label: str
    total: int | None
    bar: TaskID
    started: float
    ended: float = 0.0
    done: int = 0
    shown: bool = False


@dataclass
class _Run:
    """State of the run, collected from its events."""

    started: float = 0.0
    done: int = 0
    plan: Mapping[str, int] = field(default_factory=dict)  # jobs by rule, and their "total"
    stages: dict[str, _Stage] = field(default_factory=dict)
    jobs: dict[int, JobStarted] = field(default_factory=dict)  # unfinished jobs by ID
    failed: set[int] = field(default_factory=set)
    failed_commands: dict[int | None, CommandFailed] = field(default_factory=dict)  # by thread, until JobFailed
    memory_kills: int | None = None  # by Linux, of any process, before the run


class LogHandler(LogHandlerBase):
    """Snakemake calls `emit` in its queue thread, under the handler's lock, and `close` after that thread has ended."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        settings = self.common_settings
        quiet = set(settings.quiet or ())
        self.console = open_console(sys.stdout if settings.stdout else sys.stderr, color=not settings.nocolor)
        self.bars = stage_bars(self.console)
        self.run = _Run()
        self.home = Path.cwd()  # the user's folder: Snakemake changes to its --directory later
        self.shows_progress = not is_quiet_about(quiet, "progress")
        self.shows_rules = not is_quiet_about(quiet, "rules")
        # With `--quiet rules progress`, Snakemake's own filter would drop failed jobs and the job counts needed here.
        self.addFilter(
            DefaultFilter(
                quiet - {Quietness.RULES, Quietness.PROGRESS},
                settings.debug_dag,
                settings.verbose,
                settings.dryrun,
                settings.printshellcmds,
            )
        )
        log_to_console(self.console)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._show(record)
        except Exception as error:  # an exception here would end the queue thread and silence the rest of the run
            self._print(f"{record.getMessage()} (cannot be shown better: {error!r})")

    def close(self) -> None:
        """Restore the terminal and report how a failed run ended. Snakemake calls this twice."""
        self.bars.stop()
        for failure in self.run.failed_commands.values():
            self._log(logging.ERROR, "all", failure.message)
        self.run.failed_commands.clear()
        if self.run.failed:
            jobs = "1 job" if len(self.run.failed) == 1 else f"{len(self.run.failed)} jobs"
            self._log(
                logging.ERROR, "all", f"build failed! {jobs} failed, {self.run.done}/{self.run.plan['total']} done"
            )
        self.run.failed.clear()
        super().close()

    def _show(self, record: logging.LogRecord) -> None:
        match read_record(record):
            case Planned() as plan:
                self._planned(plan, record)
            case JobStarted() as job:
                self._job_started(job, record)
            case CommandShown(command) if command and self.shows_rules:
                self._print(command)
            case JobFinished(jobid):
                self._job_finished(jobid, record)
            case Progress() as progress:
                self._progressed(progress, record)
            case CommandFailed() as failure:
                self.run.failed_commands[record.thread] = failure
            case JobFailed() as failed_job:
                self._job_failed(failed_job, self.run.failed_commands.pop(record.thread, None))
            case LogMessage(kind):
                self._message(kind, record)

    def _planned(self, plan: Planned, record: logging.LogRecord) -> None:
        if self.common_settings.dryrun and not self.run.plan:
            self._print(plan_table(plan.jobs))
        elif self.common_settings.dryrun:
            self._log(logging.INFO, "all", "This was a dry run: nothing was built.")
        self.run.plan, self.run.started = plan.jobs, record.created
        self.run.memory_kills = out_of_memory_kills()

    def _job_started(self, job: JobStarted, record: logging.LogRecord) -> None:
        if self.common_settings.dryrun:
            if self.common_settings.printshellcmds and self.shows_rules:
                self._print(self.format(record))
            return
        self.run.jobs[job.jobid] = job
        name, _ = stage_of(job.rule)
        if job.rule in TARGETS or name in self.run.stages:
            return
        label, total = STAGES.get(name, name), planned_parts(self.run.plan, name)
        self.run.stages[name] = _Stage(label, total, self.bars.add_task(label, total=total), record.created)
        if self.shows_progress:
            self.bars.start()

    def _job_finished(self, jobid: int, record: logging.LogRecord) -> None:
        job = self.run.jobs.pop(jobid, None)
        self.run.failed.discard(jobid)  # a retry succeeded
        name, parts = stage_of(job.rule) if job else ("", 0)
        stage = self.run.stages.get(name)
        if job is None or stage is None:
            return
        stage.done += parts
        if job.rule == CONFIG_RULE and job.log and self.console.is_terminal and self.shows_progress:
            self._print(config_block(job.log))
        self.bars.update(stage.bar, completed=stage.done)
        stage.ended = record.created
        if stage.done == stage.total:
            self._show_finished_stages()

    def _show_finished_stages(self, at_end: bool = False) -> None:
        """Log each finished stage once."""
        for name in sorted(self.run.stages, key=SHOWN_AFTER.__contains__):
            stage = self.run.stages[name]
            if stage.done == stage.total and not stage.shown and (at_end or not self._waits(name)):
                stage.shown = True
                self._stage_done(name, stage)

    def _waits(self, name: str) -> bool:
        earlier = SHOWN_AFTER.get(name, "")
        stage = self.run.stages.get(earlier)
        return planned_parts(self.run.plan, earlier) is not None and not (stage and stage.shown)

    def _stage_done(self, rule: str, stage: _Stage) -> None:
        if self.shows_progress:
            elapsed = format_elapsed(stage.ended - stage.started)
            self._log(SUCCESS, rule, f"{stage.label} done! {stage.done}/{stage.done} {elapsed}")

    def _progressed(self, progress: Progress, record: logging.LogRecord) -> None:
        self.run.done = progress.done
        if progress.done != progress.total:
            return
        for stage in self.run.stages.values():  # fewer jobs ran than planned if a lock found its tensors unchanged
            stage.total = stage.done
            self.bars.update(stage.bar, total=stage.done)
        self._show_finished_stages(at_end=True)
        if self.shows_progress:
            self.bars.stop()
            elapsed = format_elapsed(record.created - self.run.started)
            self._log(SUCCESS, "all", f"build done! {progress.done}/{progress.total} {elapsed}")

    def _job_failed(self, failure: JobFailed, command: CommandFailed | None) -> None:
        self.run.failed.add(failure.jobid)
        job = self.run.jobs.get(failure.jobid)
        wildcards = ", ".join(f"{name}={value}" for name, value in job.wildcards.items()) if job else ""
        facts = [f"rule {failure.rule} failed", wildcards, command.how if command else "", failure.message]
        facts += [f"{name}={value}" for name, value in failure.facts.items()]
        self._log(logging.ERROR, failure.rule, "; ".join(filter(None, facts)))
        end = end_of(
            command.how if command else "",
            "\n".join([failure.message, *(line for log in failure.logs[1:] for line in _tail(log))]),
            job.mem_mb if job else None,
            not failure.facts and out_of_memory_kills() != self.run.memory_kills,  # jobs without facts ran here
        )
        written = [append_line(log, f"axzoo: {end}") for log in failure.logs[:1] if end]
        if end and not all(written or [False]):
            self._print(f"    {end}", style="bold red")
        tails = [self._print_log(log) for log in failure.logs]
        if not any(tails) and failure.command:
            self._print(f"    {failure.command}")

    def _print_log(self, path: Path) -> bool:
        """Print the log's path and last lines. The very last line, which names the error, is printed in bold red."""
        shown = display_path(path, self.home)
        try:
            lines = log_tail(path)
        except OSError:
            self._print(f"    {shown}: missing")
            return False
        self._print(f"    {shown}:" if lines else f"    {shown}: empty")
        for line in lines[:-1]:
            self._print(f"        {line}")
        for line in lines[-1:]:
            self._print(f"        {line}", style="bold red")
        return bool(lines)

    def _message(self, kind: MessageKind, record: logging.LogRecord) -> None:
        text = without_control(self.format(record))
        if record.levelno >= logging.ERROR and not self.common_settings.verbose:
            text = without_calls(text)
        if kind is MessageKind.REASONS:  # a dry run lists individual jobs only with -p
            lines = text.splitlines()
            text = "\n".join([*lines[:1], _HOW_TO_LIST_JOBS, *lines[2:]])
        shown = {
            MessageKind.ROUTINE: self.common_settings.verbose,
            MessageKind.UP_TO_DATE: self.common_settings.verbose or self.shows_progress,
            MessageKind.LOG_FILES: self.common_settings.verbose or bool(self.run.failed),
            MessageKind.FAILURE_SUMMARY: not self.run.failed,
        }
        if shown.get(kind, True) and text not in ("", "None"):
            _emit_line(record.levelno, f"snakemake.{record.module}", record.funcName, record.lineno, text)

    def _log(self, level: int, rule: str, message: str) -> None:
        """Print a log line. The field for its origin contains axzoo:<rule>:<number of parts done>."""
        stage = self.run.stages.get(stage_of(rule)[0])
        _emit_line(level, "axzoo", rule, stage.done if stage else self.run.done, without_control(message))

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(without_control(text), style=style), soft_wrap=True)


def _tail(log: Path) -> list[str]:
    try:
        return log_tail(log)
    except OSError:
        return []


def planned_parts(plan: Mapping[str, int], stage: str) -> int | None:
    """The number of parts that a stage makes, or None if it has no jobs. `plan` counts jobs by rule."""
    counts = [jobs * parts for rule, jobs in plan.items() for name, parts in [stage_of(rule)] if name == stage]
    return sum(counts) or None


def plan_table(plan: Mapping[str, int]) -> str:
    """The plan as a table of stages, with the number of jobs and of the parts they make. `plan` counts jobs by rule."""
    jobs: Counter[str] = Counter()
    for rule, count in plan.items():
        jobs[stage_of(rule)[0]] += count
    rows = [("stage", "jobs", "parts"), *((name, count, planned_parts(plan, name)) for name, count in jobs.items())]
    return "\n".join(
        f"{name:<18}{count:>6}{parts if name != 'total' else '':>7}".rstrip() for name, count, parts in rows
    )


def _emit_line(level: int, name: str, function: str | None, line: int, message: str) -> None:
    """Emit a record through axzoo's logger, with the given origin."""
    record = logging.LogRecord(name, level, "", line, message, args=None, exc_info=None, func=function)
    logging.getLogger("axzoo").handle(record)
