"""Snakemake's errors in one line, and what ended a job that could not log it."""

from __future__ import annotations

import pytest

from axzoo.report.failures import end_of, without_calls

ADVICE = "run fewer jobs at once (--cores), or allow them less memory together (--resources mem_mb=N)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            'WorkflowError in file "/a b/Snakefile", line 33:\nfirst\nsecond\n'
            '  File "/a b/Snakefile", line 33, in <module>',
            "first\nsecond",
        ),
        (
            'InputFunctionException in rule layer in file "/p/parts.smk", line 42:\nError:\n'
            '  AxzooError: no such file\nWildcards:\n  chip=AX650\nTraceback:\n  File "/p/parts.smk", line 9, in paths',
            "no such file",
        ),
        (
            'Traceback (most recent call last):\n\n  File "dag.py", line 252, in init\n    job = await x\n\n'
            "NotADirectoryError: [Errno 20] Not a directory: 'results'\n",
            "NotADirectoryError: [Errno 20] Not a directory: 'results'",
        ),
        ("WorkflowError:\nsomething else", "WorkflowError:\nsomething else"),
        ("InputFunctionException in rule a:\nError:\n  KeyError: 1\nWildcards:\n", None),
    ],
)
def test_messages_without_calls(text: str, shown: str | None) -> None:
    assert without_calls(text) == (text if shown is None else shown)


@pytest.mark.parametrize(
    ("how", "message", "out_of_memory", "end"),
    [
        ("returned non-zero exit status 1", "", True, ""),
        ("returned non-zero exit status 255", "", False, ""),
        ("", "", False, ""),
        ("returned non-zero exit status 137", "", True, "by Linux, because memory ran out (it had requested 900 MB)"),
        ("died with <Signals.SIGKILL: 9>", "", False, "if nobody did that, memory ran out (it had requested 900 MB)"),
        ("returned non-zero exit status 139", "", False, "killed by signal 11 (SIGSEGV)"),
        ("returned non-zero exit status 135", "", False, "killed by signal 7 (SIGBUS)"),
        ("returned non-zero exit status 28", "", False, "no space left on the disk, not even for the log"),
        (
            "",
            "SLURM-job '7' failed, SLURM status is: 'OUT_OF_MEMORY'. ",
            False,
            "killed, because it used more memory than it had requested: 900 MB",
        ),
        ("", "slurmstepd: error: Step 7.0 exceeded memory limit (1 > 0)", False, "killed, because it used more memory"),
    ],
)
def test_end_of_a_job(how: str, message: str, out_of_memory: bool, end: str) -> None:
    found = end_of(how, message, 900, out_of_memory)
    assert end in found
    assert bool(found) == bool(end)
    if "signal 9" in found:
        assert found.endswith(ADVICE)
