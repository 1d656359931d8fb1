"""From OpenPose's maps to people: peaks of the heat maps are joined where the affinity fields agree.

Source: Cao et al. 2017, section 3, with the thresholds of the ControlNet annotator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Limbs by keypoint numbers, and the first channel (x, then y) of the field along each limb.
_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
)  # fmt: skip
_FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
# The two limbs from shoulder to ear, which come last, extend people but do not start one.
_STARTERS = 17
_SAMPLES = 10
_PEAK = 0.1
_FIELD = 0.05
_FEWEST_PARTS = 4
_LOWEST_MEAN = 0.4


@dataclass
class _Member:
    """One person under construction: the peak of each part (-1 for none), the sum of scores, the number of parts."""

    parts: np.ndarray
    score: float
    count: int


def find_people(heat: np.ndarray, fields: np.ndarray) -> list[np.ndarray]:
    """Heat maps (H,W,19) and fields (H,W,38) -> bodies (18,3) of x, y, score. Score 0 is a missing part."""
    peaks, groups = find_peaks(heat)
    members: list[_Member] = []
    for index, (limb, channel) in enumerate(zip(_LIMBS, _FIELDS, strict=True)):
        pairs = _connections(peaks, groups, limb, fields[..., channel : channel + 2])
        for first, second, score in pairs:
            _join(members, limb, first, second, score, peaks, may_start=index < _STARTERS)
    bodies = []
    for member in members:
        if member.count >= _FEWEST_PARTS and member.score / member.count >= _LOWEST_MEAN:
            body = np.zeros((18, 3))
            seen = member.parts >= 0
            body[seen] = peaks[member.parts[seen]]
            bodies.append(body)
    return bodies


def find_peaks(heat: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Heat maps (H,W,19) -> all peaks (N,3) of x, y, score, and for each of 18 parts the numbers of its peaks.

    A peak is not smaller than its four neighbours after a blur, and is above `_PEAK`. Its score is the value before the
    blur.
    """
    from scipy.ndimage import gaussian_filter

    peaks, groups, count = [], [], 0
    for part in range(18):
        blurred = gaussian_filter(heat[..., part], sigma=3)
        around = np.pad(blurred, 1)
        neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
        highest = np.all([blurred >= other for other in neighbours], axis=0) & (blurred > _PEAK)
        rows, columns = np.nonzero(highest)
        peaks.append(np.column_stack([columns, rows, heat[rows, columns, part]]))
        groups.append(np.arange(count, count + len(rows)))
        count += len(rows)
    return np.concatenate(peaks), groups


def _connections(
    peaks: np.ndarray, groups: list[np.ndarray], limb: tuple[int, int], field: np.ndarray
) -> list[tuple[int, int, float]]:
    """Pairs of peaks with the field along the line between them, best first. Each peak is in one pair at most."""
    starts, ends = groups[limb[0]], groups[limb[1]]
    if not len(starts) or not len(ends):
        return []
    a, b = np.repeat(starts, len(ends)), np.tile(ends, len(starts))
    vectors = peaks[b, :2] - peaks[a, :2]
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), 0.001)
    places = np.linspace(peaks[a, :2], peaks[b, :2], num=_SAMPLES, axis=1).round().astype(int)
    along = (field[places[..., 1], places[..., 0]] * (vectors / lengths[:, None])[:, None]).sum(axis=-1)
    # Cao et al. 2017, equation 11; lines longer than half of the picture lose score.
    scores = along.mean(axis=1) + np.minimum(0.5 * field.shape[0] / lengths - 1.0, 0.0)
    good = ((along > _FIELD).sum(axis=1) > 0.8 * _SAMPLES) & (scores > 0)
    chosen: list[tuple[int, int, float]] = []
    used: set[int] = set()
    for index in np.argsort(-scores, kind="stable"):
        first, second = int(a[index]), int(b[index])
        if good[index] and first not in used and second not in used:
            chosen.append((first, second, float(scores[index])))
            used |= {first, second}
    return chosen


def _join(
    members: list[_Member],
    limb: tuple[int, int],
    first: int,
    second: int,
    score: float,
    peaks: np.ndarray,
    *,
    may_start: bool,
) -> None:
    """Add one limb to the person with one of its ends, merge two people with one end each, or start a new person."""
    start, end = limb
    found = [m for m in members if m.parts[start] == first or m.parts[end] == second][:2]
    if len(found) == 2 and not ((found[0].parts >= 0) & (found[1].parts >= 0)).any():
        one, other = found
        one.parts = np.maximum(one.parts, other.parts)
        one.score += other.score + score
        one.count += other.count
        members[:] = [member for member in members if member is not other]
    elif found:
        member = found[0]
        if len(found) == 2 or member.parts[end] != second:
            member.parts[end] = second
            member.count += 1
            member.score += float(peaks[second, 2]) + score
    elif may_start:
        parts = np.full(18, -1)
        parts[[start, end]] = first, second
        members.append(_Member(parts, float(peaks[[first, second], 2].sum()) + score, 2))
