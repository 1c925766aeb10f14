"""Snakemake's events as a user of axzoo watches them: a bar per stage, stamped lines, failures in short.

Everything Snakemake says that is not known here is printed in full, in its own words.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import TaskID
from rich.text import Text
from snakemake.logging import DefaultFilter, is_quiet_about
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from axzoo.core.console import SUCCESS, format_elapsed, log_to_console, open_console, stage_bars

STAGES = {
    "fetch": "fetching checkpoints",
    "lock": "locking checkpoints",
    "calibrate": "calibrating",
    "layer": "building llm decode layers",
    "post": "building llm post layer",
    "embed": "extracting embeddings",
    "bundle": "bundling",
    "check_layers": "checking layers",
    "check_generation": "checking generation",
}
CONFIG_RULE = "lock"  # its log holds the model's Config(...) block, shown on a terminal
TARGETS = ("all", "demo")  # rules that only collect files: no stage of their own
TOLD_AFTER = {"post": "layer"}  # stages whose line waits for another's: as the documented tool shows them

_TAIL_LINES, _TAIL_BYTES = 10, 16384
_BATCH = re.compile(r"layers_(\d+)_(\d+)(?:_decode)?")
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SHELL_FAILED = re.compile(
    r"RuleException:\nCalledProcessError in .*(returned non-zero exit status \S+|died with .+)\.\s*", re.DOTALL
)
# Said at every run and nothing a user acts upon; `--verbose` shows it.
_CHATTER = (
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Using shell:",
    "Group jobs: inactive",
    "Conda environments: ignored",
    "Singularity containers: ignored",
    "Select jobs to execute",
    "Touching output file",
    "Removing temporary output",
    "Removing output files of failed job",
    "Shutting down, this might take some time",
    "DAG of jobs will be updated after completion",
    "Updating checkpoint dependencies",
    "The run involves checkpoint jobs",
    "Complete log(s):",
    "Elapsed time:",
)
_IDLE = "Nothing to be done"
_CHATTER_EVENTS = (LogEvent.WORKFLOW_STARTED, LogEvent.RESOURCES_INFO, LogEvent.JOB_STARTED, LogEvent.GROUP_INFO)
# Said after failures that have been shown already.
_EPILOGUE = (
    "Exiting because a job execution failed. Look above for error messages",
    "WorkflowError:\nAt least one job did not complete successfully.",
)
# A dry run lists the single jobs only on demand.
_REASONS = "(check individual jobs above for details)", "(snakemake -np lists the jobs)"


@dataclass
class _Stage:
    """What the jobs of one kind make, over all models. Times are seconds since the epoch, as log records carry them."""

    label: str
    total: int | None
    bar: TaskID
    started: float
    ended: float = 0.0
    done: int = 0
    told: bool = False


@dataclass
class _Run:
    """What is known of the run so far, from its events."""

    started: float = 0.0
    done: int = 0
    plan: Mapping[str, int] = field(default_factory=dict)  # jobs by rule, and their "total"
    stages: dict[str, _Stage] = field(default_factory=dict)
    jobs: dict[int, tuple[str, str, Path]] = field(default_factory=dict)  # not finished: rule, wildcards, log
    failed: set[int] = field(default_factory=set)
    shell_errors: dict[int | None, str] = field(default_factory=dict)  # by thread, until the job's own event comes


class LogHandler(LogHandlerBase):
    """`emit` runs in Snakemake's queue thread, under the handler's lock; `close` after that thread has ended."""

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
        self.home = Path.cwd()  # the user's: Snakemake goes to its --directory later
        self.shows_progress = not is_quiet_about(quiet, "progress")
        self.shows_rules = not is_quiet_about(quiet, "rules")
        self.events: dict[LogEvent, Callable[[logging.LogRecord], None]] = {
            LogEvent.RUN_INFO: self._planned,
            LogEvent.JOB_INFO: self._job_started,
            LogEvent.SHELLCMD: self._shell_command,
            LogEvent.JOB_FINISHED: self._job_finished,
            LogEvent.PROGRESS: self._progressed,
            LogEvent.ERROR: self._error,
            LogEvent.JOB_ERROR: self._job_failed,
        }
        # Snakemake's filter would hide failing jobs, and the job counts needed here, from `--quiet rules progress`.
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
            self.events.get(getattr(record, "event", None), self._other)(record)  # type: ignore[arg-type]
        except Exception:  # an exception here would end the queue thread and silence the rest of the run
            self.handleError(record)

    def close(self) -> None:
        """Leaves the terminal in order and says how a failed run ended. Snakemake calls it twice."""
        self.bars.stop()
        for text in self.run.shell_errors.values():
            self._say(logging.ERROR, "all", text)
        self.run.shell_errors.clear()
        if self.run.failed:
            jobs = "1 job" if len(self.run.failed) == 1 else f"{len(self.run.failed)} jobs"
            self._say(
                logging.ERROR, "all", f"build failed! {jobs} failed, {self.run.done}/{self.run.plan['total']} done"
            )
        self.run.failed.clear()
        super().close()

    def _planned(self, record: logging.LogRecord) -> None:
        if self.common_settings.dryrun and not self.run.plan:
            self._print(plan_table(vars(record)["stats"]))
        self.run.plan, self.run.started = vars(record)["stats"], record.created

    def _job_started(self, record: logging.LogRecord) -> None:
        data = vars(record)
        rule: str = data["rule_name"]
        if self.common_settings.dryrun:
            if self.common_settings.printshellcmds and self.shows_rules:
                self._print(self.format(record))
            return
        wildcards = ", ".join(f"{k}={v}" for k, v in data["wildcards"].items())
        self.run.jobs[data["jobid"]] = rule, wildcards, Path(next(iter(data["log"]), ""))
        name, _ = stage_of(rule)
        if rule in TARGETS or name in self.run.stages:
            return
        label, total = STAGES.get(name, name), planned_parts(self.run.plan, name)
        self.run.stages[name] = _Stage(label, total, self.bars.add_task(label, total=total), record.created)
        if self.shows_progress:
            self.bars.start()

    def _shell_command(self, record: logging.LogRecord) -> None:
        """Comes only with `--printshellcmds`: the filter sees to it."""
        command = vars(record).get("cmd") or vars(record).get("shellcmd")
        if command and self.shows_rules:
            self._print(command)

    def _job_finished(self, record: logging.LogRecord) -> None:
        jobid: int = vars(record)["job_id"]
        rule, _, log = self.run.jobs.pop(jobid, ("", "", Path()))
        self.run.failed.discard(jobid)  # a retry went well
        name, parts = stage_of(rule)
        stage = self.run.stages.get(name)
        if stage is None:
            return
        stage.done += parts
        if rule == CONFIG_RULE and self.console.is_terminal and self.shows_progress:
            self._print(config_block(log))
        self.bars.update(stage.bar, completed=stage.done)
        stage.ended = record.created
        if stage.done == stage.total:
            self._tell_done()

    def _tell_done(self, at_end: bool = False) -> None:
        """Says of each finished stage, once, that it is done."""
        for name in sorted(self.run.stages, key=TOLD_AFTER.__contains__):
            stage = self.run.stages[name]
            if stage.done == stage.total and not stage.told and (at_end or not self._waits(name)):
                stage.told = True
                self._stage_done(name, stage)

    def _waits(self, name: str) -> bool:
        earlier = TOLD_AFTER.get(name, "")
        stage = self.run.stages.get(earlier)
        return planned_parts(self.run.plan, earlier) is not None and not (stage and stage.told)

    def _stage_done(self, rule: str, stage: _Stage) -> None:
        if self.shows_progress:
            elapsed = format_elapsed(stage.ended - stage.started)
            self._say(SUCCESS, rule, f"{stage.label} done! {stage.done}/{stage.done} {elapsed}")

    def _progressed(self, record: logging.LogRecord) -> None:
        data = vars(record)
        self.run.done = data["done"]
        if self.run.done != data["total"]:
            return
        for stage in self.run.stages.values():  # a lock left parts untouched, so fewer jobs ran than were planned
            stage.total = stage.done
            self.bars.update(stage.bar, total=stage.done)
        self._tell_done(at_end=True)
        if self.shows_progress:
            self.bars.stop()
            elapsed = format_elapsed(record.created - self.run.started)
            self._say(SUCCESS, "all", f"build done! {self.run.done}/{data['total']} {elapsed}")

    def _error(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if _SHELL_FAILED.fullmatch(text):
            self.run.shell_errors[record.thread] = text  # the job's own event follows, in the same thread
        else:
            self._other(record)

    def _job_failed(self, record: logging.LogRecord) -> None:
        data = vars(record)
        rule, wildcards, _ = self.run.jobs.get(data["jobid"], (data["rule_name"], "", Path()))
        self.run.failed.add(data["jobid"])
        shell_error = _SHELL_FAILED.fullmatch(self.run.shell_errors.pop(record.thread, ""))
        facts = [f"rule {rule} failed", wildcards, shell_error[1] if shell_error else "", data["rule_msg"] or ""]
        facts += [f"{name}={value}" for name, value in data["aux"].items()]
        self._say(logging.ERROR, rule, "; ".join(filter(None, facts)))
        tails = [self._print_log(Path(log)) for log in data["log"]]
        if not any(tails) and data["shellcmd"]:
            self._print(f"    {data['shellcmd']}")

    def _print_log(self, path: Path) -> bool:
        """Prints the log's path and its last lines, the last of all, which says what went wrong, in bold red."""
        shown = path_from(self.home, path)
        try:
            lines = log_tail(path)
        except OSError:
            self._print(f"    {shown}: not there")
            return False
        self._print(f"    {shown}:" if lines else f"    {shown}: empty")
        for line in lines[:-1]:
            self._print(f"        {line}")
        for line in lines[-1:]:
            self._print(f"        {line}", style="bold red")
        return bool(lines)

    def _other(self, record: logging.LogRecord) -> None:
        text = _CONTROL.sub("", self.format(record)).replace(*_REASONS)
        shown = text not in ("", "None")
        if record.levelno < logging.WARNING and not self.common_settings.verbose:
            kept = self.run.failed and text.startswith("Complete log(s):")
            shown &= self.shows_progress or not text.startswith(_IDLE)
            shown &= bool(kept) or not (text.startswith(_CHATTER) or vars(record).get("event") in _CHATTER_EVENTS)
        if shown and not (self.run.failed and text in _EPILOGUE):
            _stamp(record.levelno, f"snakemake.{record.module}", record.funcName, record.lineno, text)

    def _say(self, level: int, rule: str, message: str) -> None:
        """A stamped line; its place reads axzoo:<rule>:<jobs of it done>."""
        stage = self.run.stages.get(stage_of(rule)[0])
        _stamp(level, "axzoo", rule, stage.done if stage else self.run.done, _CONTROL.sub("", message))

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(_CONTROL.sub("", text), style=style), soft_wrap=True)


def stage_of(rule: str) -> tuple[str, int]:
    """The stage that a rule's jobs belong to, and how many of its parts each makes: layers_0_14 makes 15 of layer."""
    batch = _BATCH.fullmatch(rule)
    return ("layer", int(batch[2]) - int(batch[1]) + 1) if batch else (rule, 1)


def planned_parts(plan: Mapping[str, int], stage: str) -> int | None:
    """How many parts the planned jobs, counted by rule, make in a stage; None when the plan has none of it."""
    made = [jobs * parts for rule, jobs in plan.items() for name, parts in [stage_of(rule)] if name == stage]
    return sum(made) or None


def plan_table(plan: Mapping[str, int]) -> str:
    """The planned jobs, counted by rule, as a table by stage: how many jobs, and how many parts they make."""
    jobs: Counter[str] = Counter()
    for rule, count in plan.items():
        jobs[stage_of(rule)[0]] += count
    rows = [("stage", "jobs", "parts"), *((name, count, planned_parts(plan, name)) for name, count in jobs.items())]
    return "\n".join(
        f"{name:<18}{count:>6}{parts if name != 'total' else '':>7}".rstrip() for name, count, parts in rows
    )


def path_from(home: Path, path: Path) -> Path:
    """A path of the current folder as one of `home`; as an absolute one where it lies outside."""
    absolute = path.absolute()
    return absolute.relative_to(home) if absolute.is_relative_to(home) else absolute


def log_tail(path: Path) -> list[str]:
    """The last lines of a job's log, up to 10 from its last 16 KiB, without blank ones and control characters.

    Raises OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = (_CONTROL.sub("", line).rstrip() for line in text.splitlines())
    return [line for line in lines if line][-_TAIL_LINES:]


def config_block(path: Path) -> str:
    """The Config(...) block of a log; empty when it holds none. Raises OSError when the file cannot be read."""
    found = re.search(r"^Config\(\n(    .*\n)*\)$", path.read_text(errors="replace"), re.MULTILINE)
    return found[0] if found else ""


def _stamp(level: int, name: str, function: str | None, line: int, message: str) -> None:
    """A line of axzoo's log that says it comes from elsewhere."""
    record = logging.LogRecord(name, level, "", line, message, args=None, exc_info=None, func=function)
    logging.getLogger("axzoo").handle(record)
