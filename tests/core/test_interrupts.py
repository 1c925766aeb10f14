"""The tests themselves, started by a script in the background: such a process ignores SIGINT."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def child_handles_interrupts() -> bool:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_child_processes_do_not_ignore_sigint(request: pytest.FixtureRequest) -> None:
    file = str(Path(__file__).parents[1] / "conftest.py")
    plugins = request.config.pluginmanager.get_plugins()
    (conftest,) = (plugin for plugin in plugins if getattr(plugin, "__file__", None) == file)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not child_handles_interrupts()
        conftest.pytest_configure()
        assert child_handles_interrupts()
    finally:
        signal.signal(signal.SIGINT, before)
