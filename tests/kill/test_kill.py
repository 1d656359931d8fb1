"""The quick form of the campaign of kills; `python -m tests.kill --kills 1000` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_killed_commands_leave_whole_files_and_run_again_to_the_same_end() -> None:
    command = [sys.executable, "-m", "tests.kill", "--kills", "5", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "5 kills in mid-work from seed 1, 0 faults"
