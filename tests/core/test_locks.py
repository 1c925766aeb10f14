"""Locks between processes: of the store, of builds and of llm_build, with and without flock support."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from axzoo.core import locks
from axzoo.core.errors import AxzooError
from axzoo.core.locks import BuildLock, lock_file, locked_store, start_again
from axzoo.llm_build.project import open_project

UNSUPPORTED = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP]

_BUILD = """
import sys
from pathlib import Path
from axzoo.core.locks import BuildLock
assert BuildLock(Path(sys.argv[1])).acquire()
print("running", flush=True)
sys.stdin.read()
"""


def refuse(code: int) -> Callable[..., int]:
    def flock(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return flock


@contextmanager
def other_build(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", _BUILD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process


def use_store(folder: Path) -> None:
    for exclusive in (False, True):
        with locked_store(folder, exclusive=exclusive):
            pass


def use_build(folder: Path) -> None:
    path = folder / ".snakemake" / "axzoo.lock"
    assert all(BuildLock(path).acquire() for _ in range(2))


def use_llm_build(folder: Path) -> None:
    with open_project(folder), open_project(folder) as project:
        assert os.fstat(project.lock).st_ino == (folder / "lock").stat().st_ino


@pytest.mark.parametrize("code", UNSUPPORTED)
@pytest.mark.parametrize(
    ("use", "name", "unprotected"),
    [
        (use_store, ".lock", "do not run `axzoo store gc`"),
        (use_build, ".snakemake/axzoo.lock", "do not start two builds in this folder at once"),
        (use_llm_build, "lock", "do not run two llm_build commands with the same --work_path"),
    ],
)
def test_without_flock_support_one_warning_is_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    use: Callable[[Path], None],
    name: str,
    unprotected: str,
    code: int,
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(code))
    use(tmp_path)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith(f"{tmp_path / name} cannot be locked ({os.strerror(code)}): {unprotected}")


@pytest.mark.parametrize("use", [use_store, use_llm_build])
def test_another_failure_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OSError, match=r"Input/output error: '.*lock'"):
        use(tmp_path)


def test_another_failure_of_a_builds_lock_is_an_axzoo_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(AxzooError, match=r"axzoo\.lock cannot be written \(Input/output error\)"):
        use_build(tmp_path)


def test_a_store_that_can_only_be_read_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_store(tmp_path)
    real = os.open

    def only_read(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", only_read)
    with locked_store(tmp_path, exclusive=False):
        monkeypatch.undo()
        with pytest.raises(BlockingIOError):
            lock_file(tmp_path / locks.STORE_LOCK, "", wait=False)
    assert not caplog.records


def test_a_read_only_store_without_a_lock_file_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.open

    def only_read(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", only_read)
    use_store(tmp_path)
    assert "do not run `axzoo store gc`" in caplog.text


def test_a_plan_is_current_when_no_other_build_has_run(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    planned = BuildLock(path)
    assert not path.exists()
    assert planned.acquire()


def test_a_plan_made_before_or_during_another_build_is_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    before = BuildLock(path)
    with other_build(path) as other:
        during = BuildLock(path)
        other.communicate("")
    for planned in (before, during):
        assert not planned.acquire()
        assert "another build has run in" in capsys.readouterr().err
    assert BuildLock(path).acquire()


def test_a_build_waits_for_another(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with other_build(path) as other:
        command = [
            sys.executable,
            "-c",
            _BUILD.replace("assert", "print(not").replace("acquire()", "acquire())"),
            str(path),
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            assert "waiting for it to end" in waiting.stderr.readline()
            assert waiting.poll() is None
            other.communicate("")
            assert "planning again" in waiting.communicate("")[1]


def test_a_build_plans_again_after_a_killed_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    with other_build(path) as other:
        other.kill()
    assert not BuildLock(path).acquire()
    assert "an earlier build was killed in" in capsys.readouterr().err
    assert BuildLock(path).acquire()


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"what?"])
def test_a_damaged_lock_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock"
    path.write_bytes(content)
    assert BuildLock(path).acquire() or BuildLock(path).acquire()


def test_only_the_snakemake_command_restarts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/other"])
    with pytest.raises(AxzooError, match="start this build again"):
        start_again()
