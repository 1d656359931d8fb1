"""Whether the learned preprocessors work with the files that a user has: found, loaded, and plausible on a photo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import WeightsError
from ..run import process
from .files import find_folder, find_weights

if TYPE_CHECKING:
    from ..entry import Entry, Weights
    from .library import Library


@dataclass(frozen=True)
class Finding:
    """What is true of one preprocessor; `state` is "ok", "absent", "refused" or "implausible"."""

    name: str
    state: str
    text: str


def check_all(picture: np.ndarray, library: Library) -> Iterator[Finding]:
    """Check every learned preprocessor on a photo (H,W,3) of a person, one after the other."""
    from ..catalog import ENTRIES

    for entry in ENTRIES:
        if entry.weights:
            yield check(entry, picture, library)


def check(entry: Entry, picture: np.ndarray, library: Library) -> Finding:
    """Look for the files of one, run it, and judge the hint; nets are let go again afterwards."""
    try:
        missing = [weights for weights in _needed(entry) if not _is_there(entry, weights.file, library)]
        if missing:
            return Finding(entry.name, "absent", " and ".join(f"{w.file}: {w.source} ({w.licence})" for w in missing))
        began = time.perf_counter()
        hint = np.asarray(process(entry, picture[None], library=library))[0]
        seconds = time.perf_counter() - began
    except WeightsError as error:
        plain = error.__cause__ if isinstance(error.__cause__, WeightsError) else error  # without what could do instead
        return Finding(entry.name, "refused", str(plain))
    finally:
        library.forget()
    files = " and ".join(weights.file for weights in _needed(entry))
    doubt = judge(entry, hint)
    if doubt:
        return Finding(entry.name, "implausible", f"{files}: {doubt}")
    height, width = hint.shape[:2]
    return Finding(
        entry.name, "ok", f"{files}: loaded, and plausible on the example ({width}x{height}, {seconds:.1f} s)"
    )


def judge(entry: Entry, hint: np.ndarray) -> str:
    """What is strange about a hint (H,W,3) of a photo with a person in the middle; empty if nothing is."""
    if not np.isfinite(hint).all():
        return "the hint has values that are no numbers"
    bright = float((hint.max(axis=-1) > 0.2).mean())
    if bright == 0.0:
        return "the hint is black"
    if float(hint.std()) < 0.005:
        return "the hint is one flat colour"
    if entry.resample == "nearest" and entry.condition in ("scribble", "mlsd", "openpose") and bright > 0.6:
        return f"{100 * bright:.0f} % of the hint is bright, lines should leave most of it black"
    if entry.condition in ("softedge", "lineart") and float(hint.mean()) > 0.6:
        return f"the hint's mean is {hint.mean():.2f}, lines should leave most of it black"
    if entry.condition == "seg" and len(np.unique(np.rint(hint.reshape(-1, 3) * 255), axis=0)) < 2:
        return "the whole picture is one class"
    if entry.condition == "normal" and float(hint[..., 2].mean()) < 0.5:
        return "most normals point away from the viewer"
    if entry.condition == "depth" and _middle(hint) <= _top(hint):
        return "the person in the middle is not nearer than the wall above"
    return ""


def _middle(hint: np.ndarray) -> float:
    height, width = hint.shape[:2]
    return float(hint[height // 2 : -height // 8, width // 3 : -width // 3].mean())


def _top(hint: np.ndarray) -> float:
    return float(hint[: max(1, hint.shape[0] // 10), -hint.shape[1] // 3 :].mean())


def _needed(entry: Entry) -> tuple[Weights, ...]:
    """The files of a default run: a choice of models needs its first one alone, OpenPose its body net."""
    return entry.weights if entry.name == "pose_vitpose" else entry.weights[:1]


def _is_there(entry: Entry, file: str, library: Library) -> bool:
    weights = next(weights for weights in entry.weights if weights.file == file)
    find = find_folder if entry.backend == "transformers" else find_weights
    try:
        find(weights, library.folders)
    except WeightsError:
        return False
    return True
