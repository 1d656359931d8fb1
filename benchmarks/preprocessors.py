"""Measure speed and quality of the preprocessors; prints the tables of benchmarks/preprocessors.md.

    python benchmarks/preprocessors.py [--sizes 512 1024] [--frames 1 16] [--only canny ...] [--no-quality]

Speed: ours beside a node of the existing pack on the same frames (floats to bytes, detector, bytes to floats, stack).
The detectors come from the PyPI package controlnet-aux, if it has them and is installed; otherwise the pack's formulas
are written out in plain cv2. Both sides get the same float frames and run in turns, in changing order, after a warm-up.
The table has the median of the runs and the interquartile range. The results of both sides are compared. `--clock cpu`
counts the processor time of all threads instead of wall time, for machines with other work.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from comfyui_controlnet_core import preprocessors

Detector = Callable[[np.ndarray], np.ndarray]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Row:
    """One comparison. Times are in milliseconds for all frames together."""

    kind: str
    size: int
    frames: int
    ours: float
    ours_spread: float
    peer: float
    peer_spread: float
    peer_name: str
    difference: str


def main() -> None:
    """Print the tables; with --json, write them to a file too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 1024])
    parser.add_argument("--frames", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--only", nargs="*", help="only these kinds")
    parser.add_argument("--no-quality", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    args = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, cv2 {cv2.__version__} with {cv2.getNumThreads()} threads, "
        f"numpy {np.__version__}, Python {platform.python_version()}, {args.clock} clock\n"
    )
    rows = list(_speed(args))
    scores = []
    if not args.no_quality:
        from preprocessors_quality import all_scores

        print("\n| measure | value | goal | worst case |\n| --- | --- | --- | --- |")
        for score in all_scores():
            scores.append(score)
            print(f"| {score.name} | {score.value:.3f} | {score.gate} | {score.worst} |", flush=True)
    if args.json:
        report = {"speed": [asdict(row) for row in rows], "quality": [asdict(score) for score in scores]}
        Path(args.json).write_text(json.dumps(report, indent=1), "utf-8")


def _speed(args: argparse.Namespace) -> Iterator[Row]:
    print("| kind | size | frames | ours, ms | peer, ms | ratio | peer | result |\n" + "| --- " * 8 + "|")
    for kind, (detector, name) in peers().items():
        if args.only and kind not in args.only:
            continue
        for size in args.sizes:
            for frames in args.frames:
                row = compare(kind, detector, name, size, frames, args.runs, CLOCKS[args.clock])
                print(
                    f"| {kind} | {size} | {frames} | {row.ours:.1f} ± {row.ours_spread:.1f} "
                    f"| {row.peer:.1f} ± {row.peer_spread:.1f} | {row.peer / row.ours:.1f} | {name} "
                    f"| {row.difference} |",
                    flush=True,
                )
                yield row


def compare(
    kind: str, detector: Detector, name: str, size: int, frames: int, runs: int, clock: Callable[[], float]
) -> Row:
    """Measure both sides in turns on the same frames."""
    image = photos(size, frames)
    options = {"mode": "luminance"} if kind == "recolor" else {}

    def ours() -> np.ndarray:
        return preprocessors.process(kind, image, **options)

    def peer() -> np.ndarray:
        return as_a_node(detector, image)

    sides, seconds = {"ours": ours, "peer": peer}, {"ours": [], "peer": []}
    results = {side: run() for side, run in sides.items()}
    for turn in range(runs):
        for side in sorted(sides, reverse=turn % 2 == 1):
            start = clock()
            sides[side]()
            seconds[side].append(1e3 * (clock() - start))
    quarters = {side: np.percentile(times, [25, 50, 75]) for side, times in seconds.items()}
    return Row(kind, size, frames, quarters["ours"][1], quarters["ours"][2] - quarters["ours"][0],
               quarters["peer"][1], quarters["peer"][2] - quarters["peer"][0], name,
               difference(results["ours"], results["peer"]))  # fmt: skip


def difference(ours: np.ndarray, peer: np.ndarray) -> str:
    """Describe the difference: identical, or how many pixels differ and by how much."""
    if ours.shape != peer.shape:
        return f"sizes differ: {ours.shape[1:3]}, {peer.shape[1:3]}"
    gap = np.abs(ours - peer)
    if not gap.any():
        return "identical"
    return f"{100 * (gap > 0.5 / 255).any(-1).mean():.2f} % of pixels differ, mean {gap.mean():.4f}"


def photos(size: int, frames: int) -> np.ndarray:
    """Return frames (B,size,size,3) float32: the bundled photo, mirrored and shifted from frame to frame."""
    import comfyui_controlnet_core

    folder = Path(comfyui_controlnet_core.__file__).parent / "controlnet_core" / "assets" / "examples"
    photo = cv2.imdecode(np.frombuffer((folder / "coffee.jpg").read_bytes(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    photo = cv2.resize(np.ascontiguousarray(photo), (size, size), interpolation=cv2.INTER_CUBIC)
    moved = [np.roll(photo[:, :: 1 if index % 2 else -1], 7 * index, axis=1) for index in range(frames)]
    return np.stack(moved).astype(np.float32) / np.float32(255)


def as_a_node(detector: Detector, image: np.ndarray) -> np.ndarray:
    """Run a detector as a node of the existing pack does: one frame at a time through bytes, then stacked."""
    import torch

    tensor = torch.from_numpy(image)
    made = []
    for frame in tensor:
        result = detector(np.asarray(frame * 255.0, dtype=np.uint8))
        made.append(torch.from_numpy(np.asarray(result).astype(np.float32) / 255.0))
    return torch.stack(made).numpy()


def peers() -> dict[str, tuple[Detector, str]]:
    """Return the detectors to compare with, by the name of our kind."""
    table: dict[str, tuple[Detector, str]] = {
        "canny": (_rgb(lambda x: cv2.Canny(x, 100, 200)), "plain cv2"),
        "scribble": (_xdog, "plain cv2"),
        "scribble_drawing": (_rgb(_drawing), "plain cv2"),
        "lineart": (_rgb(_lineart), "plain cv2"),
        "shuffle": (_shuffle, "plain cv2"),
        "recolor": (_rgb(_recolor), "plain cv2"),
        "binary": (_rgb(_binary), "plain cv2"),
        "color_grid": (_grid, "plain cv2"),
        "blur": (lambda x: cv2.GaussianBlur(x, (0, 0), 9.0), "plain cv2"),
    }
    package = _controlnet_aux()
    if package:
        canny = importlib.import_module("controlnet_aux.canny").CannyDetector()
        lineart = importlib.import_module("controlnet_aux.lineart_standard").LineartStandardDetector()
        table["canny"] = (lambda x: canny(x, detect_resolution=min(x.shape[:2]), image_resolution=min(x.shape[:2]),
                                          output_type="np"), package)  # fmt: skip
        table["lineart"] = (lambda x: lineart(x, detect_resolution=min(x.shape[:2]), output_type="np"), package)
    return table


def _controlnet_aux() -> str:
    """Make single detectors of controlnet-aux importable; the whole package needs many more dependencies."""
    found = importlib.util.find_spec("controlnet_aux")
    if found is None or not found.submodule_search_locations:
        return ""
    package = types.ModuleType("controlnet_aux")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["controlnet_aux"] = package
    return "controlnet-aux"


def _rgb(function: Detector) -> Detector:
    return lambda x: np.concatenate([function(x)[..., None]] * 3, axis=2)


def _xdog(x: np.ndarray) -> np.ndarray:
    narrow = cv2.GaussianBlur(x.astype(np.float32), (0, 0), 0.5)
    wide = cv2.GaussianBlur(x.astype(np.float32), (0, 0), 5.0)
    dog = (255 - np.min(wide - narrow, axis=2)).clip(0, 255).astype(np.uint8)
    result = np.zeros_like(x)
    result[2 * (255 - dog.astype(np.int16)) > 32] = 255
    return result


def _drawing(x: np.ndarray) -> np.ndarray:
    result = np.zeros(x.shape[:2], np.uint8)
    result[np.min(x, axis=2) < 127] = 255
    return result


def _lineart(x: np.ndarray) -> np.ndarray:
    values = x.astype(np.float32)
    darkness = np.min(cv2.GaussianBlur(values, (0, 0), 6.0) - values, axis=2).clip(0, 255)
    darkness /= max(16, np.median(darkness[darkness > 8]))
    return (darkness * 127).clip(0, 255).astype(np.uint8)


def _shuffle(x: np.ndarray) -> np.ndarray:
    height, width = x.shape[:2]
    rng = np.random.default_rng(0)

    def disk() -> np.ndarray:
        noise = rng.uniform(low=0, high=1, size=(height // 256 + 2, width // 256 + 2, 1))
        noise = cv2.resize(noise, (width + 512, height + 512), interpolation=cv2.INTER_CUBIC)
        noise = noise[256 : 256 + height, 256 : 256 + width]
        noise -= np.min(noise)
        return (noise / np.max(noise))[..., None]

    flow = np.concatenate([disk() * float(width - 1), disk() * float(height - 1)], axis=2).astype(np.float32)
    return cv2.remap(x, flow, None, cv2.INTER_LINEAR)


def _recolor(x: np.ndarray) -> np.ndarray:
    lightness = cv2.cvtColor(x, cv2.COLOR_RGB2LAB)[..., 0].astype(np.float32) / 255.0
    return (lightness**1.0 * 255.0).clip(0, 255).astype(np.uint8)


def _binary(x: np.ndarray) -> np.ndarray:
    return cv2.threshold(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)[1]


def _grid(x: np.ndarray) -> np.ndarray:
    height, width = x.shape[:2]
    cells = cv2.resize(x, (width // 64, height // 64), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)


if __name__ == "__main__":
    main()
