"""Checks the learned preprocessors with a user's own files: they are found, load, and give plausible hints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..catalog import ENTRIES
from ..errors import WeightsError
from ..run import process

if TYPE_CHECKING:
    from ..entry import Entry, Weights
    from .library import Library


@dataclass(frozen=True)
class Finding:
    """The result for one preprocessor. `state` is "ok", "absent", "refused" or "implausible"."""

    name: str
    state: str
    text: str


def check_all(picture: np.ndarray, library: Library) -> Iterator[Finding]:
    """Check every learned preprocessor on a photo (H,W,3) of a person, one after the other."""
    return (check(entry, picture, library) for entry in ENTRIES if entry.weights)


def check(entry: Entry, picture: np.ndarray, library: Library) -> Finding:
    """Find the files of one preprocessor, run it, and judge the hint. Its networks are released afterwards."""
    needed = entry.needed_weights(entry.values({}))
    try:
        missing = [weights for weights in needed if not _exists(weights, library)]
        if missing:
            return Finding(entry.name, "absent", " and ".join(f"{w.file}: {w.source} ({w.licence})" for w in missing))
        began = time.perf_counter()
        hint = np.asarray(process(entry, picture[None], library=library))[0]
        seconds = time.perf_counter() - began
    except WeightsError as error:
        # Without the alternative.
        plain = error.__cause__ if isinstance(error.__cause__, WeightsError) else error
        return Finding(entry.name, "refused", str(plain))
    finally:
        library.forget()
    files = " and ".join(weights.file for weights in needed)
    doubt = judge(entry, hint)
    if doubt:
        return Finding(entry.name, "implausible", f"{files}: {doubt}")
    size = f"{hint.shape[1]}x{hint.shape[0]}"
    return Finding(entry.name, "ok", f"{files}: loaded, and plausible on the example ({size}, {seconds:.1f} s)")


def judge(entry: Entry, hint: np.ndarray) -> str:
    """Why a hint (H,W,3) of a photo with a person in the middle is implausible; empty if it is plausible."""
    if not np.isfinite(hint).all():
        return "the hint has NaN or infinite values"
    height, width = hint.shape[:2]
    bright, mean = float((hint.max(axis=-1) > 0.2).mean()), float(hint.mean())
    if bright == 0.0:
        return "the hint is black"
    if float(hint.std()) < 0.005:
        return "the hint is one flat colour"
    if entry.resample == "nearest" and entry.condition in ("scribble", "mlsd", "openpose") and bright > 0.6:
        return f"{100 * bright:.0f} % of the hint is bright, lines should leave most of it black"
    if entry.condition in ("softedge", "lineart") and mean > 0.6:
        return f"the hint's mean is {mean:.2f}, lines should leave most of it black"
    if entry.condition == "seg" and len(np.unique(np.rint(hint.reshape(-1, 3) * 255), axis=0)) < 2:
        return "the whole picture is one class"
    if entry.condition == "normal" and float(hint[..., 2].mean()) < 0.5:
        return "most normals point away from the viewer"
    # The file of another network may estimate distance, where near is small.
    if entry.condition == "depth":
        person = hint[height // 2 : -height // 8, width // 3 : -width // 3].mean()
        wall = hint[: max(1, height // 10), -width // 3 :].mean()
        if person <= wall:
            return "the person in the middle is not nearer than the wall above"
    return ""


def _exists(weights: Weights, library: Library) -> bool:
    try:
        return bool(library.find(weights))
    except WeightsError:
        return False
