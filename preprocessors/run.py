"""The one interface: pictures in, hints out, the same for every preprocessor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .entry import Entry
from .errors import ParameterError, PictureError, WeightsError
from .image_ops import as_batch, like, rgb_frame, to_bytes, to_numpy, unit_range, write_hint
from .parallel import each, thread_count, workers
from .resize import Size, detect_size, pad_reflect, resize_hint, resize_map, resize_picture

if TYPE_CHECKING:
    from .image_ops import Array
    from .learned.library import Library
    from .pose.people import Pose

Progress = Callable[[int, int], None]
_ENDS = ("near", "far")  # the values that become 1 and 0 where the range is fixed


def process(
    entry: Entry,
    image: Array,
    *,
    resolution: int = 0,
    resize: str = "input",
    multiple: int = 1,
    output: str = "input_size",
    mask: Array | None = None,
    normalize: str = "frame",
    seed: int = 0,
    target: tuple[int, int] | None = None,
    fit: str = "crop",
    library: Library | None = None,
    progress: Progress | None = None,
    keep_pose: Callable[[Pose], None] | None = None,
    **parameters: Any,
) -> Array:
    """Pictures (B,H,W,C), values 0..1 (or uint8, uint16) -> hints (B,H,W,3) float32 0..1.

    A tensor comes back as a tensor on the CPU, an array as an array. Values outside 0..1 are clamped.

    resolution, resize, multiple: the size at which the picture is looked at; 0 and "input" are its own.
        "shortest" makes the shortest side `resolution`, "pixel_perfect" takes what the picture to be made
        needs (`target` = (height, width), `fit` = "crop" or "fill"). Both sides are padded by reflection
        to `multiple`, and cropped again.
    output: "input_size" brings the hint back to the picture's size, "detect_size" leaves it.
    mask: (B,H,W) or (H,W); the hint is black where it is below 0.5 (inpainting reads it as what to repaint).
    normalize: where a range is measured, over each "frame", over the "batch" (no flicker in a video), or
        "fixed" by the parameters.
    seed: everything random follows from it; each frame uses the same, so a batch equals its singles.
    library: where learned ones find their nets; raises WeightsError where one is needed and not there.
    progress: called on the caller's thread with (frames done, frames in all) after each frame, or after each chunk of
        frames that a net sees together; what it raises ends the run.
    keep_pose: called with the people of each frame, in order and in pixels of the hint, where the kind finds people.

    Frames are worked on by as many threads as cv2 uses; the result does not depend on their number.
    """
    _check_options(output, normalize, seed)
    values = entry.values(parameters)
    frames = as_batch(image)
    count, height, width = frames.shape[:3]
    width = _half(width) if entry.side_by_side else width
    multiple = math.lcm(multiple, entry.multiple)
    size = detect_size(
        height, width, resolution=resolution, resize=resize, multiple=multiple, target=target, fit=fit
    )
    masks = _masks(mask, count, height, width)
    shape = (height, width) if output == "input_size" else (size.height, size.width)

    def keep(pose: Pose) -> None:
        if keep_pose is not None:
            keep_pose(replace(pose, height=size.height, width=size.width).resized(*shape))

    job = _Job(entry, values, size, frames, masks, normalize, seed, library, progress, keep)
    out = np.empty((count, *shape, 3), np.float32)
    job.write(out)
    return like(out, image)


def _check_options(output: str, normalize: str, seed: int) -> None:
    if output not in ("input_size", "detect_size"):
        raise ParameterError(f"output={output!r}: choose 'input_size' or 'detect_size'")
    if normalize not in ("batch", "frame", "fixed"):
        raise ParameterError(f"normalize={normalize!r}: choose 'batch', 'frame' or 'fixed'")
    if seed < 0:
        raise ParameterError(f"seed={seed}: choose 0 or more")


@dataclass(frozen=True)
class _Job:
    """One run of one preprocessor, at the size at which it looks."""

    entry: Entry
    values: dict[str, Any]
    size: Size
    frames: np.ndarray
    masks: np.ndarray | None
    normalize: str
    seed: int
    library: Library | None
    progress: Progress | None
    keep_pose: Callable[[Pose], None]

    def write(self, out: np.ndarray) -> None:
        """The hint of each frame into its place in `out`."""
        if not len(self.frames):
            return
        if self.entry.scope == "frame":
            self._write_singly(out)
            return
        results = self._together() if self.entry.scope == "batch" else self._in_chunks()
        for index, result in enumerate(self._with_advice(results)):
            self._finish(index, result, out[index])

    def _write_singly(self, out: np.ndarray) -> None:
        """Frame by frame, some of them at a time; each with the threads that are left for it."""
        count, pixels = len(self.frames), self.size.padded_height * self.size.padded_width
        at_once = workers(count, pixels)
        function = partial(self.entry.call, **self.values)
        if self.entry.seeded:
            function = partial(function, seed=self.seed)
        if self.entry.threaded:
            function = partial(function, threads=thread_count() // at_once)

        def work(index: int) -> None:
            extra = {"mask": _mask_at(self.masks, index, self.size)} if self.entry.masked else {}
            self._finish(index, function(self._prepared(self.frames[index]), **extra), out[index])

        each(work, count, at_once, self._report)

    def _with_advice(self, results: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The same; where weights are missing, the error names what would do without."""
        try:
            yield from results
        except WeightsError as error:
            if not self.entry.fallback:
                raise
            advice = f"{error}. {self.entry.fallback} needs no weights: choose it for a hint of the same kind"
            raise WeightsError(advice, error.path) from error

    def _together(self) -> Iterator[np.ndarray]:
        yield from self.entry.call(self._one_by_one(), normalize=self.normalize, **self.values)

    def _one_by_one(self) -> Iterator[np.ndarray]:
        """The pictures; a frame is reported when the next one is asked for."""
        for index, frame in enumerate(self.frames):
            yield self._prepared(frame)
            self._report(index + 1)

    def _in_chunks(self) -> Iterator[np.ndarray]:
        if not self.entry.ranged:
            return self._estimates()
        from .depth import depth_to_hint

        ends = {name: self.values[name] for name in _ENDS}
        found = np.stack(list(self._estimates()))
        return iter(depth_to_hint(found, space="linear", invert=True, normalize=self.normalize, **ends))

    def _estimates(self) -> Iterator[np.ndarray]:
        """What the net says, for as many frames at a time as its memory allows."""
        from .learned.library import Library

        values = {name: value for name, value in self.values.items() if not self.entry.ranged or name not in _ENDS}
        library = self.library or Library(())
        step = max(1, library.pixels // (self.size.padded_height * self.size.padded_width))
        for start in range(0, len(self.frames), step):
            chunk = np.stack([self._prepared(frame) for frame in self.frames[start : start + step]])
            found = self.entry.call(chunk, library=library, weights=self.entry.weights, **values)
            if self.entry.posed:
                found = self._drawn(found)
            elif not np.isfinite(found).all():
                raise WeightsError(
                    f"the net of {self.entry.name} gave values that are no numbers: its file is damaged, or half "
                    "precision is too small for it (--dtype fp32)"
                )
            yield from found
            self._report(start + len(chunk))

    def _drawn(self, poses: Sequence[Pose]) -> Iterator[np.ndarray]:
        """People -> a picture for each frame, at the size at which they were looked for."""
        from .pose.draw import draw

        for pose in poses:
            self.keep_pose(pose)
            yield draw(pose)

    def _finish(self, index: int, result: np.ndarray, out: np.ndarray) -> None:
        """Crop what was padded, bring the hint to the size of `out`, and clear it outside of the mask."""
        height, width = out.shape[:2]
        hint = result[: self.size.height, : self.size.width]
        write_hint(resize_hint(hint, height, width, self.entry.resample), out)
        if self.masks is not None and not self.entry.masked:
            out[resize_hint(np.ascontiguousarray(self.masks[index]), height, width, "nearest") < 0.5] = 0.0

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.frames))

    def _prepared(self, frame: np.ndarray) -> np.ndarray:
        if not self.entry.side_by_side:
            return _prepare(self.entry, self.size, frame)
        half = frame.shape[1] // 2
        eyes = (frame[:, :half], frame[:, half : 2 * half])
        return np.concatenate([_prepare(self.entry, self.size, eye) for eye in eyes], axis=1)


def _prepare(entry: Entry, size: Size, frame: np.ndarray) -> np.ndarray:
    """The form that the entry takes, at the size at which it looks."""
    if entry.takes == "values":
        return pad_reflect(resize_map(frame.astype(np.float32), size.height, size.width), size)
    picture = rgb_frame(frame)
    if entry.takes == "labels":
        return pad_reflect(resize_hint(to_bytes(picture), size.height, size.width, "nearest"), size)
    picture = unit_range(picture) if entry.takes == "unit" else to_bytes(picture)
    return pad_reflect(resize_picture(picture, size.height, size.width), size)


def _masks(mask: Array | None, count: int, height: int, width: int) -> np.ndarray | None:
    """Any mask -> (B,H,W) float32; one mask serves every frame."""
    if mask is None:
        return None
    array = to_numpy(mask)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != (height, width) or array.shape[0] not in (1, count):
        raise PictureError(
            f"a mask of shape {tuple(np.shape(mask))} came with {count} pictures of {height}x{width}; "
            f"expected ({count},{height},{width}) or ({height},{width}): resize the mask to the picture"
        )
    return np.broadcast_to(unit_range(array), (count, height, width))


def _mask_at(masks: np.ndarray | None, index: int, size: Size) -> np.ndarray | None:
    if masks is None:
        return None
    mask = resize_hint(np.ascontiguousarray(masks[index]), size.height, size.width, "nearest")
    return pad_reflect(mask, size)


def _half(width: int) -> int:
    if width < 2:
        raise PictureError(f"a stereo pair side by side came {width} pixel wide; expected two pictures in one")
    return width // 2
