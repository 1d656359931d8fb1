"""Make the hints of `controlnet preprocess`, in batches of pictures of one size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import preprocessors
from ..controlnet_core.errors import CoreError, DamagedFileError, ValueRangeError
from ..controlnet_core.limits import PICTURE_PIXELS
from ..controlnet_core.picture_files import read_frames
from .hint_files import Job, write_hint

if TYPE_CHECKING:
    import numpy as np

    from ..preprocessors.learned.library import Library
    from ..preprocessors.pose import Pose

POSE = "pose"
_SHOWN_FAILURES = 3
_BATCH_PIXELS = 2**24
"""Pixels of pictures in memory at a time: 16 pictures of 1024 x 1024. A larger picture is processed alone."""


class HintError(CoreError):
    """An error with the exit code that the preprocessors give it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Outcome:
    """Results of the jobs.

    made, kept: numbers of hints, of this run and of earlier ones. over_white: number of pictures whose alpha channel
    was composited over white. notes: messages for the user. failed: inputs without a hint, with the reason.
    """

    made: int = 0
    kept: int = 0
    over_white: int = 0
    notes: list[str] = field(default_factory=list)
    failed: dict[Path, CoreError] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Add the results of other jobs."""
        self.made, self.kept = self.made + other.made, self.kept + other.kept
        self.over_white += other.over_white
        self.notes += other.notes
        self.failed |= other.failed

    def check(self, total: int) -> None:
        """Raise if an input has no hint: its own error if it is the only input, else one that names the first."""
        if not self.failed:
            return
        errors = list(self.failed.values())
        if total == 1:
            raise errors[0]
        more = f", and {len(errors) - _SHOWN_FAILURES} more" if len(errors) > _SHOWN_FAILURES else ""
        named = "; ".join(str(error) for error in errors[:_SHOWN_FAILURES])
        message = f"{len(errors)} of {total} inputs have no hint, all others have theirs: {named}{more}"
        raise HintError(message, max(error.exit_code for error in errors))


@dataclass(frozen=True)
class Settings:
    """Settings for all pictures of a run.

    options: of every kind, parameters: of this kind. batch: pictures in memory at a time. whole: whether one range
    counts over all frames. mask: (H, W). library: the networks of learned kinds. sources: `hint_sources`.
    """

    kind: str
    options: dict[str, Any]
    parameters: dict[str, Any]
    batch: int
    whole: bool = False
    mask: np.ndarray | None = None
    library: Library | None = None
    sources: dict[str, Any] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """The text that is written into each hint, by which a later run recognises it."""
        extra = [self.sources] if self.sources else []
        return json.dumps([self.kind, self.options, self.parameters, *extra], sort_keys=True, default=str)


def hint_sources(settings: Settings, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return digests of what every hint depends on besides its picture: mask, networks, all frames of one range."""
    found: dict[str, Any] = {}
    mask, library = settings.mask, settings.library
    if mask is not None:
        found["mask"] = hashlib.sha256(f"{mask.shape} {mask.dtype}".encode() + mask.tobytes()).hexdigest()
    if library is not None:
        found |= {"weights": library.stamps(preprocessors.get(settings.kind)), "dtype": str(library.dtype)}
    # Names, times and sizes are enough, and much faster than reading all frames.
    if settings.whole:
        stamps = [(job.source.name, job.source.stat().st_mtime_ns, job.source.stat().st_size) for job in jobs]
        found["frames"] = hashlib.sha256(repr(stamps).encode()).hexdigest()
    return found


def make_all(jobs: Sequence[Job], settings: Settings, *, quiet: bool = False) -> Outcome:
    """Make the hints in batches of equal size, in order. quiet: show no bar."""
    from tqdm import tqdm

    outcome = Outcome()
    if settings.kind == POSE:
        for source, group in groupby(jobs, key=lambda job: job.source):
            _draw_poses(source, group, settings, outcome)
        return outcome
    with tqdm(total=len(jobs), unit="picture", disable=quiet or None) as bar:
        for batch, pictures in _batches(jobs, settings, outcome):
            # There are no hints at all for pictures of a shape that is refused.
            for job, hint in zip(batch, _hints(batch, pictures, settings, outcome), strict=False):
                write_hint(hint, job.target, settings.note)
                outcome.made += 1
                bar.update()
    return outcome


def _hints(jobs: Sequence[Job], pictures: np.ndarray, settings: Settings, outcome: Outcome) -> Iterable[np.ndarray]:
    """Return the hints of pictures of one shape. If that shape is refused, return none and record each failure."""
    options = {**settings.options, **settings.parameters, "mask": settings.mask, "library": settings.library}
    try:
        return preprocessors.process(settings.kind, pictures, as_bytes=True, **options)
    except preprocessors.PictureError as error:
        outcome.failed |= {job.source: DamagedFileError(f"{job.source}: {error}") for job in jobs}
        return ()


def _batches(jobs: Sequence[Job], settings: Settings, outcome: Outcome) -> Iterator[tuple[list[Job], np.ndarray]]:
    """Yield some pictures of one shape and dtype at a time, in order, without unreadable ones.

    Raises LimitError for frames of one range that have more pixels than one picture may have.
    """

    size = len(jobs) if settings.whole else settings.batch
    group: list[Job] = []
    pictures: list[np.ndarray] = []
    for job, picture in _pictures(jobs, outcome, is_clamped=preprocessors.get(settings.kind).takes != "values"):
        same = not pictures or (picture.shape, picture.dtype) == (pictures[0].shape, pictures[0].dtype)
        if settings.whole and not same:
            raise ValueRangeError(
                f"{job.source} is {picture.shape} and the frames before it are {pictures[0].shape}: one range "
                "over all frames needs frames of one size; choose --normalize frame"
            )
        pixels = picture.shape[0] * picture.shape[1] * (len(pictures) + 1)
        if settings.whole:
            PICTURE_PIXELS.check(
                pixels, f"{job.source}: one range over {len(jobs)} frames needs all of them at once. It"
            )
        is_full = len(pictures) == size or (pixels > _BATCH_PIXELS and not settings.whole)
        # A batch is one array, so its pictures must have one shape.
        if pictures and (not same or is_full):
            yield group, _stacked(pictures)
            group, pictures = [], []
        group.append(job)
        pictures.append(picture)
    if pictures:
        yield group, _stacked(pictures)


def _stacked(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of one shape as one array; a single one is not copied. The list is emptied: it would keep the memory."""
    import numpy as np

    made = np.stack(pictures) if len(pictures) > 1 else pictures[0][None]
    pictures.clear()
    return made


def _pictures(jobs: Sequence[Job], outcome: Outcome, *, is_clamped: bool) -> Iterator[tuple[Job, np.ndarray]]:
    """Yield the picture of each job, as stored. The frames of a file are read one after the other."""
    for source, group in groupby(jobs, key=lambda job: job.source):
        wanted = {job.frame: job for job in group}
        try:
            for index, picture in enumerate(read_frames(source)):
                if index in wanted:
                    if is_clamped and (outside := _outside(picture.pixels)):
                        outcome.notes.append(f"{source}: {outside}")
                    outcome.over_white += picture.has_alpha
                    yield wanted[index], picture.pixels
        except DamagedFileError as error:
            outcome.failed[source] = error


def _outside(pixels: np.ndarray) -> str:
    """A note about numbers outside 0 to 1, which this kind clamps; empty for pictures without such numbers."""
    if pixels.dtype.kind != "f" or bool(((pixels >= 0) & (pixels <= 1)).all()):
        return ""
    return (
        f"its numbers are not between 0 and 1 ({pixels.min():g} to {pixels.max():g}), what is outside was clamped: "
        "for a depth map of a renderer, use depth_map or normal_depth"
    )


def read_pose_file(path: Path, canvas: tuple[int, int] | None) -> tuple[Pose, ...]:
    """Return the frames of an OpenPose JSON file.

    canvas: (height, width) for a file that does not name its canvas. Raises DamagedFileError.
    """
    from ..preprocessors.limits import MAX_JSON_BYTES
    from ..preprocessors.pose import read_poses

    height, width = canvas or (None, None)
    try:
        with path.open(encoding="utf-8-sig") as file:
            return read_poses(file.read(MAX_JSON_BYTES + 1), height=height, width=width)
    except (preprocessors.PictureError, OSError, UnicodeError) as error:
        raise DamagedFileError(f"{path}: {error}", path) from error


def _draw_poses(source: Path, jobs: Iterable[Job], settings: Settings, outcome: Outcome) -> None:
    """Draw the frames of one OpenPose JSON file into the files of their jobs."""
    from ..preprocessors.pose import render
    from ..preprocessors.resize import detect_size

    try:
        frames = read_pose_file(source, settings.options.get("canvas"))
    except DamagedFileError as error:
        outcome.failed[source] = error
        return
    # Report each note once, in order.
    notes = dict.fromkeys(note for pose in frames for note in pose.notes)
    outcome.notes += [f"{source}: {note}" for note in notes]
    for job in jobs:
        pose = frames[job.frame]
        side = settings.options["resolution"]
        size = detect_size(pose.height, pose.width, resolution=side, resize="shortest", multiple=1)
        hint = render([pose], height=size.height, width=size.width, as_bytes=True)[0]
        write_hint(hint, job.target, settings.note)
        outcome.made += 1
