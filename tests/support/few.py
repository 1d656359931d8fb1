"""Marks for tests with many cases: a few run each time, the rest with `pytest -m slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few_of(cases: Iterable[Any], *each_time: Any) -> list[Any]:
    """The cases as parameters; all but those named here are marked slow."""
    cases = list(cases)
    assert set(each_time) <= set(cases), "a case that is to run each time does not exist"
    return [case if case in each_time else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def rows_of(rows: Iterable[tuple[Any, ...]], *each_time: int) -> list[Any]:
    """Rows of several parameters; all but those with these indices are marked slow."""
    rows = list(rows)
    assert max(each_time) < len(rows), "a row that is to run each time does not exist"
    return [row if index in each_time else pytest.param(*row, marks=pytest.mark.slow) for index, row in enumerate(rows)]
