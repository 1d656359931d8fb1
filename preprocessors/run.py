"""Runs any preprocessor: pictures in, hints out.

This file brings pictures to the size and form that a preprocessor takes, and its results back to the size of the hint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .depth import NORMALIZE, depth_to_hint
from .entry import Entry
from .errors import ParameterError, PictureError, WeightsError, check_choice
from .image_ops import as_batch, like, rgb_bytes, rgb_unit, to_numpy, unit_range, write_hint
from .limits import MAX_CANVAS_PIXELS
from .parallel import run_each, thread_count, worker_count
from .resize import Size, detect_size, pad_reflect, resize_hint, resize_map, resize_picture

if TYPE_CHECKING:
    from .image_ops import Array
    from .learned.library import Library
    from .pose import Pose

Progress = Callable[[int, int], None]
# The parameters with the values that become 1 and 0 if the range is fixed.
_ENDS = ("near", "far")


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
    as_bytes: bool = False,
    **parameters: Any,
) -> Array:
    """Make hints (B,H,W,3) float32 0..1 of pictures (B,H,W,C), floats 0..1, uint8 or uint16.

    A tensor gives a tensor on the CPU, an array an array. Floats outside 0..1 are clamped.

    resolution, resize, multiple: the size at which the preprocessor sees the picture. "input" is the picture's own
        size. "shortest" resizes its shorter side to `resolution`. "pixel_perfect" chooses the size from the picture to
        be generated (`target` = (height, width), `fit` = "crop" or "fill"). Both sides are padded by reflection to
        `multiple`; the hint is cropped again.
    output: "input_size" resizes the hint to the picture's size, "detect_size" keeps the size above.
    mask: (B,H,W) or (H,W). The hint is black where it is below 0.5. Inpainting reads it as the area to repaint.
    normalize: where a range is measured: in each "frame", over the "batch" (a video does not flicker), or "fixed" by
        the parameters.
    seed: for random preprocessors. Each frame uses the same seed, so that a batch equals its single frames.
    library: the networks of learned preprocessors.
    progress: called with (frames done, number of frames) on the caller's thread, after each frame or after each group
        of frames that a network sees together. An exception that it raises ends the run.
    keep_pose: called with the people of each frame, in order and in pixels of the hint, by kinds that find people.
    as_bytes: uint8 hints, as a PNG stores them, which take a quarter of the memory.

    Frames run on as many threads as cv2 uses; the result does not depend on their number.
    Raises ParameterError, PictureError, and WeightsError if a weights file is missing or damaged.
    """
    check_choice("output", output, ("input_size", "detect_size"))
    check_choice("normalize", normalize, NORMALIZE)
    if seed < 0:
        raise ParameterError(f"seed={seed}: choose 0 or more")
    values, frames = entry.values(parameters), as_batch(image)
    count, height, width = frames.shape[:3]
    if entry.side_by_side and width < 2:
        raise PictureError(f"a stereo pair is {width} pixel wide; expected two pictures side by side")
    width = width // 2 if entry.side_by_side else width
    # Both the caller's multiple and the network's must hold. lcm would drop the sign of a wrong one.
    multiple = math.lcm(multiple, entry.multiple) if multiple > 0 else multiple
    size = detect_size(height, width, resolution=resolution, resize=resize, multiple=multiple, target=target, fit=fit)
    shape = (height, width) if output == "input_size" else (size.height, size.width)
    _check_room(entry, size, height * width)
    masks = _to_masks(mask, count, height, width)
    out = np.empty((count, *shape, 3), np.uint8 if as_bytes else np.float32)
    if count:
        _Run(entry, values, size, frames, masks, normalize, seed, library, progress, keep_pose).write(out)
    return like(out, image)


def _check_room(entry: Entry, size: Size, given: int) -> None:
    """Raise PictureError for a size at which a preprocessor would take gigabytes. given: pixels of the picture.

    Most preprocessors take a larger picture at its own size: it is in memory already.
    """
    pixels = size.padded_height * size.padded_width
    if pixels > entry.largest and (pixels > given or entry.largest < MAX_CANVAS_PIXELS):
        side = int(entry.largest**0.5 * (min(size.height, size.width) / max(size.height, size.width)) ** 0.5)
        raise PictureError(
            f"{entry.name} would work on {size.width}x{size.height}, which are {pixels:,} pixels, expected at most "
            f"{entry.largest:,}: choose a resolution of at most {side}"
        )


@dataclass(frozen=True)
class _Run:
    """One run of one preprocessor. `size` is the size at which it sees the frames."""

    entry: Entry
    values: dict[str, Any]
    size: Size
    frames: np.ndarray
    masks: np.ndarray | None
    normalize: str
    seed: int
    library: Library | None
    progress: Progress | None
    keep_pose: Callable[[Pose], None] | None

    def write(self, out: np.ndarray) -> None:
        """Write the hint of each frame into `out`."""
        if self.entry.scope == "frame":
            self._write_singly(out)
            return
        if self.entry.scope == "batch":
            results = self.entry.call(self._prepared_frames(), normalize=self.normalize, **self.values)
        else:
            results = self._run_network(out.shape[1:3])
        for index, result in enumerate(results):
            self._finish(index, result, out[index])

    def _write_singly(self, out: np.ndarray) -> None:
        """Frame by frame, several of them at a time; each one has the threads that are left for it."""
        count, pixels = len(self.frames), self.size.padded_height * self.size.padded_width
        parallel = worker_count(count, pixels)
        function = partial(self.entry.call, **self.values)
        if self.entry.seeded:
            function = partial(function, seed=self.seed)
        if self.entry.threaded:
            function = partial(function, threads=thread_count() // parallel)

        def work(index: int) -> None:
            extra = {"mask": self._mask_at(index)} if self.entry.masked else {}
            self._finish(index, function(self._prepare(self.frames[index]), **extra), out[index])

        run_each(work, count, parallel, self._report)

    def _prepared_frames(self) -> Iterator[np.ndarray]:
        """Yields the frames. Progress is reported when the next one is read: the function has finished this one."""
        for index, frame in enumerate(self.frames):
            yield self._prepare(frame)
            self._report(index + 1)

    def _run_network(self, shape: tuple[int, int]) -> Iterator[np.ndarray]:
        from .learned.library import Library, advise_on_failure

        library = self.library or Library(())
        with advise_on_failure(self.entry):
            if not self.entry.ranged:
                yield from self._estimates(shape, library)
                return
            ends = {name: self.values[name] for name in _ENDS}
            nearness = np.stack(list(self._estimates(shape, library)))
            yield from depth_to_hint(nearness, space="linear", invert=True, normalize=self.normalize, **ends)

    def _estimates(self, shape: tuple[int, int], library: Library) -> Iterator[np.ndarray]:
        """The results of the network, for as many frames at a time as its memory allows."""
        values = {name: value for name, value in self.values.items() if not self.entry.ranged or name not in _ENDS}
        step = max(1, library.pixels // (self.size.padded_height * self.size.padded_width))
        for start in range(0, len(self.frames), step):
            batch = np.stack([self._prepare(frame) for frame in self.frames[start : start + step]])
            found = self.entry.call(batch, library=library, weights=self.entry.weights, **values)
            if self.entry.posed:
                found = self._draw(found, shape)
            elif not np.isfinite(found).all():
                raise WeightsError(
                    f"the network of {self.entry.name} gave NaN or infinity: its file is damaged, or half precision is "
                    "too small for it (--dtype fp32)"
                )
            yield from found
            self._report(start + len(batch))

    def _draw(self, poses: Sequence[Pose], shape: tuple[int, int]) -> Iterator[np.ndarray]:
        """The people of each frame as a picture, at the size at which the network saw them."""
        from .pose.draw import draw

        for pose in poses:
            if self.keep_pose is not None:
                self.keep_pose(replace(pose, height=self.size.height, width=self.size.width).resized(*shape))
            yield draw(pose)

    def _finish(self, index: int, result: np.ndarray, out: np.ndarray) -> None:
        """Crop the padding, resize the hint to `out`, and set it to black outside of the mask."""
        height, width = out.shape[:2]
        hint = result[: self.size.height, : self.size.width]
        write_hint(resize_hint(hint, height, width, self.entry.resample), out)
        if self.masks is not None and not self.entry.masked:
            out[resize_hint(np.ascontiguousarray(self.masks[index]), height, width, "nearest") < 0.5] = 0.0

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.frames))

    def _prepare(self, frame: np.ndarray) -> np.ndarray:
        """A frame in the form that the entry takes, resized and padded."""
        if not self.entry.side_by_side:
            return _to_form(self.entry.takes, self.size, frame)
        half = frame.shape[1] // 2
        eyes = (frame[:, :half], frame[:, half : 2 * half])
        return np.concatenate([_to_form(self.entry.takes, self.size, eye) for eye in eyes], axis=1)

    def _mask_at(self, index: int) -> np.ndarray | None:
        if self.masks is None:
            return None
        mask = resize_hint(np.ascontiguousarray(self.masks[index]), self.size.height, self.size.width, "nearest")
        return pad_reflect(mask, self.size)


def _to_form(takes: str, size: Size, frame: np.ndarray) -> np.ndarray:
    if takes == "values":
        return pad_reflect(resize_map(frame.astype(np.float32), size.height, size.width), size)
    # Nearest neighbour: a mean of two label colours would be a third label.
    if takes == "labels":
        return pad_reflect(resize_hint(rgb_bytes(frame), size.height, size.width, "nearest"), size)
    picture = rgb_unit(frame) if takes == "unit" else rgb_bytes(frame)
    return pad_reflect(resize_picture(picture, size.height, size.width), size)


def _to_masks(mask: Array | None, count: int, height: int, width: int) -> np.ndarray | None:
    """Any mask -> (B,H,W) float32. One mask serves every frame."""
    if mask is None:
        return None
    array = to_numpy(mask)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != (height, width) or array.shape[0] not in (1, count):
        raise PictureError(
            f"the mask has shape {tuple(np.shape(mask))}, the pictures are {count} of {height}x{width}; "
            f"expected ({count},{height},{width}) or ({height},{width}): resize the mask to the picture"
        )
    return np.broadcast_to(unit_range(array), (count, height, width))
