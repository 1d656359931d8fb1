"""Style and types of the sources, by the same commands that CONTRIBUTING.md names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("controlnet_core", "preprocessors", "nodes", "workflows")


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_reports_nothing(command: tuple[str, ...]) -> None:
    assert_passes("ruff", *command, "--no-cache", *SOURCES, "tests")


@pytest.mark.slow
def test_pyright_reports_no_error() -> None:
    """About two minutes, most of it for reading transformers. Needs the extra `types`."""
    pytest.importorskip("pyright")
    assert_passes("pyright", "--level", "error", "--pythonpath", sys.executable)


def assert_passes(*command: str) -> None:
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
