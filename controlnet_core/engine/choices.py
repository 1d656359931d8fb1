"""What was asked for to be faster and does nothing in a run, with the reason: told once, in its report."""

from __future__ import annotations

from .backend import Backend
from .footprint import models_of
from .graphs import why_not
from .job import Job
from .narrow import is_narrow
from .run import Run


def left_aside(job: Job, backend: Backend, run: Run) -> list[str]:
    """A line for each choice of the runtime that changes nothing here."""
    runtime, plain = backend.runtime, _why_plain(job, backend)
    choices = (
        (runtime.graphs, "no graphs", why_not(run, backend)),
        (runtime.wide, "no wide blocks", plain),
        (runtime.compile, "nothing compiled", plain),
        (runtime.side_by_side, "nets not side by side", _why_in_turn(job, backend, run)),
    )
    return [f"{what}: {why}" for asked, what, why in choices if asked and why]


def _why_plain(job: Job, backend: Backend) -> str:
    """Why blocks are neither widened nor compiled; empty where they are, at least in some models."""
    if backend.conveyor is not None:
        return "weights are streamed"
    if backend.packs:
        return "weights are packed for the processor"
    return "weights are in float8" if all(is_narrow(model) for model in models_of(job, backend)) else ""


def _why_in_turn(job: Job, backend: Backend, run: Run) -> str:
    """Why nets do not run at the same time as the encoder; empty where they do."""
    if not job.units:
        return "there is no net"
    if not run.at_once:
        return "they are timed, or left out now and then"
    device = backend.runtime.device.type
    return "" if device == "cuda" else f"the device is {device}, which runs one after the other"
