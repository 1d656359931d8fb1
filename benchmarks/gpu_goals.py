"""The goals of `gpu.py`: one figure each, computed from the rows of its parts, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A goal. limit: the lower bound, or the upper bound if `most`. value: the figure, None if missing."""

    words: str
    limit: float
    value: Callable[[dict[str, list[Row]]], float | None]
    most: bool = False

    def line(self, parts: dict[str, list[Row]]) -> str:
        """Return a row of the table."""
        value = self.value(parts)
        bound = f"{'at most' if self.most else 'at least'} {self.limit:g}"
        if value is None:
            return f"| {self.words} | {bound} | not measured | |"
        met = value <= self.limit if self.most else value >= self.limit
        return f"| {self.words} | {bound} | {value:.2f} | {'yes' if met else 'no'} |"


def ours(rows: Sequence[Row], key: str, **case: Any) -> list[float]:
    """Return a figure of ours for each set of options."""
    mine = (row for row in rows if row["engine"].startswith("ours"))
    return [row[key] for row in mine if row[key] is not None and all(row[k] == v for k, v in case.items())]


def times_as_fast(peer: str) -> Callable[[dict[str, list[Row]]], float | None]:
    """Return a peer's time divided by our best, one net."""
    return lambda parts: _of_peer(parts, peer, "seconds", nets=1, turned=True)


def of_memory(peer: str) -> Callable[[dict[str, list[Row]]], float | None]:
    """Return our lowest peak memory divided by a peer's, three nets."""
    return lambda parts: _of_peer(parts, peer, "peak_bytes", nets=3)


def _of_peer(parts: dict[str, list[Row]], peer: str, key: str, nets: int, turned: bool = False) -> float | None:
    rows = parts.get("peers", [])
    theirs = [row[key] for row in rows if row["engine"] == peer and row["nets"] == nets and row[key] is not None]
    mine = ours(rows, key, nets=nets)
    if not theirs or not mine:
        return None
    return theirs[0] / min(mine) if turned else min(mine) / theirs[0]


def of_three_nets(parts: dict[str, list[Row]]) -> float | None:
    """Return the time of three nets divided by that of one, with the best options of each."""
    one, three = (ours(parts.get("peers", []), "seconds", nets=nets) for nets in (1, 3))
    return min(three) / min(one) if one and three else None


def of_ceiling(part: str) -> Callable[[dict[str, list[Row]]], float | None]:
    """Return operations per second as a percentage of the part "ceiling"."""

    def value(parts: dict[str, list[Row]]) -> float | None:
        made, most = ours(parts.get(part, []), "tflops"), [row["tflops"] for row in parts.get("ceiling", [])]
        return 100 * max(made) / max(most) if made and most else None

    return value


def of_first(parts: dict[str, list[Row]]) -> float | None:
    """Return the seconds from loading to the first picture."""
    return min(ours(parts.get("first", []), "first"), default=None)


def of_preparing(key: str) -> Callable[[dict[str, list[Row]]], float | None]:
    """Return the time to prepare a run divided by the time of a step, one net."""

    def value(parts: dict[str, list[Row]]) -> float | None:
        rows = [r for r in parts.get("peers", []) if r["nets"] == 1 and r.get(key) is not None]
        return rows[0][key] / (rows[0]["seconds"] / rows[0]["steps"]) if rows else None

    return value


CLAIMS = (
    Claim("20 steps, one net: times as fast as ComfyUI", 2.5, times_as_fast("ComfyUI")),
    Claim("20 steps, one net: times as fast as diffusers", 3.0, times_as_fast("diffusers")),
    Claim("20 steps, one net: times as fast as diffusers compiled", 1.2, times_as_fast("diffusers compiled")),
    Claim("time of three nets / time of one net", 1.35, of_three_nets, most=True),
    Claim("batch 8: percent of the peak of matrix products", 55.0, of_ceiling("batch")),
    Claim("SDXL at 1024 pixels: percent of the peak of matrix products", 55.0, of_ceiling("sdxl")),
    Claim("three nets: peak memory without weights / ComfyUI's", 0.8, of_memory("ComfyUI"), most=True),
    Claim("three nets: peak memory without weights / diffusers'", 0.8, of_memory("diffusers"), most=True),
    Claim("seconds to the first picture after loading", 5.0, of_first, most=True),
    Claim("preparing a run / time of a step", 1.0, of_preparing("prepare"), most=True),
    Claim("preparing a run with another seed / time of a step", 0.1, of_preparing("other_seed"), most=True),
)


def table(found: dict[str, Any]) -> str:
    """Return all goals as a Markdown table, with the machine they were measured on."""
    about = ", ".join(f"{key} {value}" for key, value in found.get("machine", {}).items()) or "no GPU was measured yet"
    lines = [f"{about}, {found['dtype']}" if "dtype" in found else about, ""]
    lines += ["| on a GPU | goal | result | met |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(claim.line(found.get("parts", {})) for claim in CLAIMS)])
