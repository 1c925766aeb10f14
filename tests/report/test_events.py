"""What Snakemake's log records say, and that the places they are known by exist in the installed Snakemake."""

from __future__ import annotations

import ast
import logging
from pathlib import Path
from typing import Any

import pytest
import snakemake
from snakemake_interface_logger_plugins.common import LogEvent

from axzoo.report import events
from axzoo.report.events import CommandFailed, JobFailed, JobStarted, Kind, Progress, Said, read_record

PACKAGE = Path(snakemake.__file__).parent


def record(
    message: str | None, level: int = logging.INFO, place: tuple[str, str] = ("a", "b"), **extra: Any
) -> logging.LogRecord:
    """A record logged by a function of Snakemake, given as (module, name)."""
    file = str(PACKAGE / f"{place[0]}.py")
    made = logging.LogRecord("snakemake.logging", level, file, 1, message, None, None, func=place[1])
    vars(made).update(extra)
    return made


@pytest.mark.parametrize("place", sorted({*events.CHATTER_FROM, events.LOG_FILES_FROM, events.REASONS_FROM}))
def test_places_exist_and_log_a_sentence(place: tuple[str, str]) -> None:
    module, name = place
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


@pytest.mark.parametrize("sentence", [*events.CHATTER_SENTENCES, *events.EPILOGUE_SENTENCES])
def test_sentences_are_snakemakes(sentence: str) -> None:
    words = sentence.rpartition("\n")[2]
    assert any(words in path.read_text() for path in PACKAGE.rglob("*.py"))


def test_event_names_are_snakemakes() -> None:
    names = {str(event) for event in LogEvent}
    assert {
        *events._CHATTER_EVENTS,
        "run_info",
        "job_info",
        "shellcmd",
        "job_finished",
        "progress",
        "job_error",
        "error",
    } <= names


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (record("Using shell", place=("workflow", "execute")), Kind.CHATTER),
        (record("Using shell", logging.WARNING, ("workflow", "execute")), Kind.NOTICE),
        (record(events._idle_sentence(), place=("workflow", "execute")), Kind.IDLE),
        (record("Complete log(s)", place=events.LOG_FILES_FROM), Kind.LOG_FILES),
        (record("Reasons:", place=events.REASONS_FROM), Kind.REASONS),
        (record("Select jobs to execute...", place=("job_scheduler", "schedule")), Kind.CHATTER),
        (record("Terminating processes", place=("job_scheduler", "schedule")), Kind.NOTICE),
        (record(events.EPILOGUE_SENTENCES[1], logging.ERROR, event=LogEvent.ERROR), Kind.EPILOGUE),
        (record("WorkflowError:\nanything else", logging.ERROR, event=LogEvent.ERROR), Kind.NOTICE),
        (record("Host: a", event=LogEvent.WORKFLOW_STARTED), Kind.CHATTER),
        (record("news", event="never_heard_of", place=("workflow", "execute")), Kind.NOTICE),
        (record("two jobs", logging.ERROR, event=LogEvent.GROUP_ERROR), Kind.NOTICE),
    ],
)
def test_kinds_of_sentences(said: logging.LogRecord, kind: Kind) -> None:
    assert read_record(said) == Said(kind)


def test_what_a_users_snakefile_says_is_never_chatter() -> None:
    said = record("Select jobs to execute...")
    said.pathname, said.module, said.funcName = "/home/user/workflow.smk", "workflow", "execute"
    assert read_record(said) == Said(Kind.NOTICE)


def test_events_of_jobs() -> None:
    job: dict[str, Any] = {"jobid": 3, "rule_name": "layer"}
    started = job | {"event": LogEvent.JOB_INFO, "wildcards": {"layer": "1"}}
    assert read_record(record("", **started, log=["a"])) == JobStarted(3, "layer", {"layer": "1"}, Path("a"))
    assert read_record(record("", **started, log=[])) == JobStarted(3, "layer", {"layer": "1"}, None)
    assert read_record(record("", event=LogEvent.PROGRESS, done=1, total=2)) == Progress(1, 2)
    failed = job | {"event": LogEvent.JOB_ERROR, "rule_msg": None, "aux": {"id": 5}, "log": ["a"], "shellcmd": "exit 7"}
    failure = JobFailed(3, "layer", "", {"id": 5}, (Path("a"),), "exit 7")
    assert read_record(record("", logging.ERROR, **failed)) == failure


def test_how_a_command_failed() -> None:
    for how in ("returned non-zero exit status 7", "died with <Signals.SIGKILL: 9>"):
        text = f"RuleException:\nCalledProcessError in file \"Snakefile\", line 3:\nCommand 'exit 7' {how}."
        assert read_record(record(text, logging.ERROR, event=LogEvent.ERROR)) == CommandFailed(how, text)
    text = "RuleException:\nValueError in file Snakefile, line 3:\nin run"
    assert read_record(record(text, logging.ERROR, event=LogEvent.ERROR)) == Said(Kind.NOTICE)


def test_an_event_without_its_fields_is_an_error() -> None:
    with pytest.raises(KeyError):
        read_record(record("broken", logging.ERROR, event=LogEvent.JOB_ERROR))
