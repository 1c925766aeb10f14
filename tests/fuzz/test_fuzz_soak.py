from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.soak
def test_many_examples() -> None:
    """Run each fuzz test with two thousand files, with new random choices each time."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak", Path(__file__).parent]
    run = subprocess.run(command, env={**os.environ, "FUZZ_EXAMPLES": "2000"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:]
