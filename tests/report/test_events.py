"""Conversion of Snakemake's log records. The installed Snakemake must have the functions and messages we match."""

from __future__ import annotations

import ast
import logging
from pathlib import Path
from typing import Any

import pytest
import snakemake
from snakemake_interface_logger_plugins.common import LogEvent

from axzoo.report import events
from axzoo.report.events import CommandFailed, JobFailed, JobStarted, LogMessage, MessageKind, Progress, read_record

PACKAGE = Path(snakemake.__file__).parent


def record(
    message: str | None, level: int = logging.INFO, function: tuple[str, str] = ("a", "b"), **extra: Any
) -> logging.LogRecord:
    """A record logged by a function of Snakemake, given as (module, name)."""
    file = str(PACKAGE / f"{function[0]}.py")
    made = logging.LogRecord("snakemake.logging", level, file, 1, message, None, None, func=function[1])
    vars(made).update(extra)
    return made


FUNCTIONS = sorted({*events.ROUTINE_FUNCTIONS, events.LOG_FILES_FUNCTION, events.REASONS_FUNCTION})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_matched_functions_exist_and_log(function: tuple[str, str]) -> None:
    module, name = function
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob(f"{module}.py")]
    functions = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    assert any(
        isinstance(node, ast.Attribute) and node.attr == "info" for function in functions for node in ast.walk(function)
    )


@pytest.mark.parametrize("message", [*events.ROUTINE_MESSAGES, *events.FAILURE_SUMMARY_MESSAGES])
def test_matched_messages_exist(message: str) -> None:
    line = message.rpartition("\n")[2]
    assert any(line in path.read_text() for path in PACKAGE.rglob("*.py"))


def test_matched_event_names_exist() -> None:
    names = {str(event) for event in LogEvent}
    assert {
        *events._ROUTINE_EVENTS,
        "run_info",
        "job_info",
        "shellcmd",
        "job_finished",
        "progress",
        "job_error",
        "error",
    } <= names


@pytest.mark.parametrize(
    ("logged", "kind"),
    [
        (record("Using shell", function=("workflow", "execute")), MessageKind.ROUTINE),
        (record("Using shell", logging.WARNING, ("workflow", "execute")), MessageKind.NOTICE),
        (record(events._up_to_date_message(), function=("workflow", "execute")), MessageKind.UP_TO_DATE),
        (record("Complete log(s)", function=events.LOG_FILES_FUNCTION), MessageKind.LOG_FILES),
        (record("Reasons:", function=events.REASONS_FUNCTION), MessageKind.REASONS),
        (record("Select jobs to execute...", function=("job_scheduler", "schedule")), MessageKind.ROUTINE),
        (record("Terminating processes", function=("job_scheduler", "schedule")), MessageKind.NOTICE),
        (
            record(events.FAILURE_SUMMARY_MESSAGES[1], logging.ERROR, event=LogEvent.ERROR),
            MessageKind.FAILURE_SUMMARY,
        ),
        (record("WorkflowError:\nanything else", logging.ERROR, event=LogEvent.ERROR), MessageKind.NOTICE),
        (record("Host: a", event=LogEvent.WORKFLOW_STARTED), MessageKind.ROUTINE),
        (record("new", event="unknown_event", function=("workflow", "execute")), MessageKind.NOTICE),
        (record("two jobs", logging.ERROR, event=LogEvent.GROUP_ERROR), MessageKind.NOTICE),
    ],
)
def test_message_kinds(logged: logging.LogRecord, kind: MessageKind) -> None:
    assert read_record(logged) == LogMessage(kind)


def test_messages_of_a_users_snakefile_are_never_routine() -> None:
    logged = record("Select jobs to execute...")
    logged.pathname, logged.module, logged.funcName = "/home/user/workflow.smk", "workflow", "execute"
    assert read_record(logged) == LogMessage(MessageKind.NOTICE)


def test_job_events() -> None:
    job: dict[str, Any] = {"jobid": 3, "rule_name": "layer"}
    started = job | {"event": LogEvent.JOB_INFO, "wildcards": {"layer": "1"}}
    assert read_record(record("", **started, log=["a"])) == JobStarted(3, "layer", {"layer": "1"}, Path("a"))
    assert read_record(record("", **started, log=[])) == JobStarted(3, "layer", {"layer": "1"}, None)
    assert read_record(record("", event=LogEvent.PROGRESS, done=1, total=2)) == Progress(1, 2)
    failed = job | {"event": LogEvent.JOB_ERROR, "rule_msg": None, "aux": {"id": 5}, "log": ["a"], "shellcmd": "exit 7"}
    failure = JobFailed(3, "layer", "", {"id": 5}, (Path("a"),), "exit 7")
    assert read_record(record("", logging.ERROR, **failed)) == failure


def test_failed_command() -> None:
    for how in ("returned non-zero exit status 7", "died with <Signals.SIGKILL: 9>"):
        text = f"RuleException:\nCalledProcessError in file \"Snakefile\", line 3:\nCommand 'exit 7' {how}."
        assert read_record(record(text, logging.ERROR, event=LogEvent.ERROR)) == CommandFailed(how, text)
    text = "RuleException:\nValueError in file Snakefile, line 3:\nin run"
    assert read_record(record(text, logging.ERROR, event=LogEvent.ERROR)) == LogMessage(MessageKind.NOTICE)


def test_event_with_missing_fields_is_an_error() -> None:
    with pytest.raises(KeyError):
        read_record(record("broken", logging.ERROR, event=LogEvent.JOB_ERROR))
