"""`snakemake --logger axzoo` in small folders, with and without a terminal."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \| (?P<level>\w+) +\| (?P<place>\S+) - "

BUILD = """
rule all:
    input: "d/post.txt", "d/extra.txt"
rule layer:
    output: "d/{model}_{i}.txt"
    log: "logs/{model}_{i}.log"
    shell:
        '''
        for n in $(seq 30); do echo "note $n"; done > {log}
        [ {wildcards.i} != "${{BAD:-}}" ] || {{ printf 'tensor \\\\033[2Jmissing\\\\n\\\\n' >> {log}; exit 7; }}
        sleep ${{NAP:-0}}; touch {output}
        '''
rule post:
    input: expand("d/qwen2_{i}.txt", i=range(3))
    output: "d/post.txt"
    shell: "touch {output}"
rule unheard_of:
    output: "d/extra.txt"
    shell: "touch {output}"
"""

BATCHES = """
rule all:
    input: expand("d/{i}.txt", i=range(4))
rule layers_0_2:
    output: expand("d/{i}.txt", i=range(3))
    shell: "touch {output}"
rule layer:
    output: "d/{i}.txt"
    wildcard_constraints: i="3"
    shell: "touch {output}"
"""


def snakemake(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(arguments), cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--logger", "axzoo", "--cores", "2", *arguments]


def on_terminal(folder: Path, *arguments: str, interrupt_at: str | None = None, **environment: str) -> tuple[int, str]:
    """Runs Snakemake on a pseudo-terminal and returns its exit status and output.

    Sends Ctrl-C half a second after the text `interrupt_at` appears.
    """
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    process = subprocess.Popen(
        command(arguments), cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, process_group=0
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # on Linux: the other end is closed
            break
        written += chunk
        if interrupt_at and interrupt_at in written.decode(errors="replace"):
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
            interrupt_at = None
    os.close(ours)
    return process.wait(timeout=60), written.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


def stamped(text: str) -> list[tuple[str, str, str]]:
    """(level, place, message) of all lines with a timestamp."""
    return [(m["level"], m["place"], m[3]) for m in re.finditer("^" + STAMP + r"(.*)$", text, re.MULTILINE)]


@pytest.fixture
def build(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(BUILD)
    return tmp_path


def test_piped_build_prints_one_line_per_stage(build):
    run = snakemake(build, FORCE_COLOR="1")
    assert run.returncode == 0
    assert "\x1b" not in run.stderr + run.stdout
    assert run.stdout == ""
    lines = [(level, place, re.sub(r"\d:\d\d:\d\d$", "T", message)) for level, place, message in stamped(run.stderr)]
    assert sorted(lines[:-1]) == [
        ("SUCCESS", "axzoo:layer:3", "building llm decode layers done! 3/3 T"),
        ("SUCCESS", "axzoo:post:1", "building llm post layer done! 1/1 T"),
        ("SUCCESS", "axzoo:unheard_of:1", "unheard_of done! 1/1 T"),
    ]
    assert lines[-1] == ("SUCCESS", "axzoo:all:6", "build done! 6/6 T")
    assert len(run.stderr.splitlines()) == len(lines)

    again = snakemake(build)
    assert [message for _, _, message in stamped(again.stderr)] == [
        "Nothing to be done (all requested files are present and up to date)."
    ]


def test_terminal_shows_a_bar_per_stage(build):
    status, written = on_terminal(build, NAP="0.6")
    assert status == 0
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is visible again
    shown = plain(written)
    assert re.search(r"building llm decode layers   ━+ [01]/3 0:00:0\d", shown)
    assert re.search(r"building llm decode layers   ━+ 3/3 0:00:0\d\n", shown)
    assert re.search(r"building llm post layer      ━+ 1/1 0:00:0\d\n", shown)
    assert not re.search(r"^all ", shown, re.MULTILINE)
    *_, last = stamped(shown)
    assert last[:2] == ("SUCCESS", "axzoo:all:6")


def test_ctrl_c_restores_the_terminal(build):
    status, written = on_terminal(build, interrupt_at="building llm decode layers", NAP="20")
    assert status != 0
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "Terminating processes on user request" in plain(written)


def test_failing_job_is_shown_once_with_the_end_of_its_log(build):
    run = snakemake(build, BAD="1")
    assert run.returncode == 1
    block = [
        "    logs/qwen2_1.log:",
        *(f"        note {n}" for n in range(22, 31)),
        "        tensor missing",
    ]
    assert "\n".join(block) + "\n" in run.stderr
    errors = [(place.split(":")[1], message) for level, place, message in stamped(run.stderr) if level == "ERROR"]
    assert errors[0] == ("layer", "rule layer failed; model=qwen2, i=1; returned non-zero exit status 7")
    assert errors[1][1].startswith("build failed! 1 job failed, ")
    assert len(errors) == 2
    assert run.stderr.count("tensor missing") == 1
    assert "note 21" not in run.stderr
    assert "CalledProcessError" not in run.stderr
    assert "WorkflowError" not in run.stderr
    assert "Complete log(s):" in run.stderr


def test_error_line_is_colored_on_a_terminal(build):
    _, written = on_terminal(build, BAD="1")
    assert "\x1b[1;31m        tensor missing\x1b[0m" in written
    assert "\x1b[2J" not in written  # control codes in the log are removed


def test_failing_job_without_a_log_shows_its_command(tmp_path):
    (tmp_path / "Snakefile").write_text('rule post:\n    output: "x"\n    shell: "exit 3; touch {output}"\n')
    run = snakemake(tmp_path)
    assert run.returncode == 1
    assert "rule post failed; returned non-zero exit status 3\n    exit 3; touch x\n" in run.stderr


def test_successful_retry_is_a_success(tmp_path):
    text = 'rule post:\n    output: "x"\n    retries: 1\n    shell: "test -e y || {{ touch y; exit 3; }}; touch x"\n'
    (tmp_path / "Snakefile").write_text(text)
    run = snakemake(tmp_path)
    assert run.returncode == 0
    assert [level for level, _, _ in stamped(run.stderr)] == ["ERROR", "INFO", "SUCCESS", "SUCCESS"]
    assert "build failed" not in run.stderr


@pytest.mark.parametrize(
    ("snakefile", "expected"),
    [
        (
            'rule a:\n    input: "no/such"\n    output: "x"\n    shell: "touch x"\n',
            ["MissingInputException", "no/such"],
        ),
        (
            'rule a:\n    output: "x"\n    shell: "true"\n',
            ["MissingOutputException", "At least one job did not complete"],
        ),
        ('rule a:\n    input: "x"\n    nonsense: "y"\n', ["SyntaxError", "Snakefile"]),
        ('raise ValueError("broken here")\n', ["ValueError", "line 1", "broken here"]),
        ('rule a:\n    output: "x"\n    run: raise ValueError("in run")\n', ["ValueError", "in run", "rule a failed"]),
        ('rule a:\n    input: lambda w: 1 / 0\n    output: "x"\n    shell: "touch x"\n', ["division by zero"]),
    ],
)
def test_snakemake_errors_are_shown(tmp_path, snakefile, expected):
    (tmp_path / "Snakefile").write_text(snakefile)
    run = snakemake(tmp_path, "--latency-wait", "0")
    assert run.returncode == 1
    for part in expected:
        assert part in run.stderr


def test_locked_folder_is_shown(build):
    locks = build / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("d/post.txt\n")
    run = snakemake(build)
    assert run.returncode == 1
    assert "LockException" in run.stderr
    assert "--unlock" in run.stderr


def test_dry_run_shows_the_job_table_once(build):
    run = snakemake(build, "-n")
    shown = run.stdout + run.stderr  # Snakemake's loggers write dry runs to stdout
    assert re.search(r"^layer +3 +3$", shown, re.MULTILINE)
    assert len(re.findall(r"^total +6$", shown, re.MULTILINE)) == 1
    assert "This was a dry run" in shown
    assert "wildcards:" not in shown
    assert "SUCCESS" not in shown


def test_dry_run_with_commands_shows_jobs_and_commands(build):
    run = snakemake(build, "-n", "-p")
    shown = run.stdout + run.stderr
    assert "wildcards: model=qwen2, i=2" in shown
    assert "touch d/post.txt" in shown


@pytest.mark.parametrize(
    ("options", "shown", "hidden"),
    [
        (["-p"], ["touch d/extra.txt", "SUCCESS"], []),
        (["-p", "--quiet", "rules"], ["SUCCESS", "rule layer failed"], ["touch d/extra.txt"]),
        (["--quiet", "progress"], ["rule layer failed", "build failed"], ["SUCCESS"]),
        (["-q"], ["rule layer failed", "tensor missing", "build failed"], ["SUCCESS"]),
        (["--quiet", "all"], [], ["layer", "SUCCESS", "ERROR"]),
        (["--verbose"], ["Building DAG of jobs", "DEBUG"], []),
    ],
)
def test_quiet_and_verbose(build, options, shown, hidden):
    run = snakemake(build, "--keep-going", *options, BAD="1")
    assert run.returncode == 1
    for part in shown:
        assert part in run.stderr
    for part in hidden:
        assert part not in run.stderr


def test_unknown_records_are_shown(tmp_path):
    (tmp_path / "Snakefile").write_text(
        "from snakemake.logging import logger\n"
        'logger.warning("a strange warning", extra={"event": "never_heard_of"})\n'
        'logger.error(" two\\nlines %s", "of error")\n'
        'logger.info("news")\n'
        'logger.error("broken", extra={"event": "job_error"})\n'
        'rule a:\n    output: "x"\n    shell: "touch x"\n'
    )
    run = snakemake(tmp_path)
    for part in ["a strange warning", " two\nlines of error", "news", "broken"]:
        assert part in run.stderr
    assert "axzoo:all:1 - build done!" in run.stderr  # the printing thread survived the invalid record


def test_batched_layers_are_counted_individually(tmp_path):
    (tmp_path / "Snakefile").write_text(BATCHES)
    run = snakemake(tmp_path)
    assert run.returncode == 0
    assert "building llm decode layers done! 4/4" in run.stderr
    assert run.stderr.count("building llm decode layers") == 1
    shutil.rmtree(tmp_path / "d")
    assert re.search(r"^layer +2 +4$", snakemake(tmp_path, "-n").stdout, re.MULTILINE)
