"""Colours of the demo world, and conversions between sRGB, linear light and CIE Lab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Rgb = tuple[float, float, float]

# The sRGB albedos are far apart in Lab: the nearest one tells from a generated picture which object a pixel shows.
OBJECT_COLOURS: Mapping[str, Rgb] = {
    "red": (0.84, 0.12, 0.12),
    "orange": (0.97, 0.53, 0.08),
    "yellow": (0.98, 0.86, 0.14),
    "green": (0.14, 0.60, 0.22),
    "cyan": (0.14, 0.78, 0.82),
    "blue": (0.13, 0.30, 0.86),
    "purple": (0.47, 0.18, 0.70),
    "brown": (0.43, 0.25, 0.13),
    "grey": (0.42, 0.42, 0.44),
    "white": (0.95, 0.95, 0.94),
}
MANNEQUIN_COLOUR = "magenta"
MANNEQUIN_RGB: Rgb = (0.95, 0.20, 0.62)
GROUND_COLOURS: Mapping[str, Rgb] = {
    "grey": (0.62, 0.62, 0.63),
    "white": (0.89, 0.89, 0.88),
    "green": (0.50, 0.67, 0.42),
    "brown": (0.61, 0.47, 0.36),
    "yellow": (0.89, 0.80, 0.55),
    "blue": (0.48, 0.59, 0.75),
    "pink": (0.89, 0.70, 0.72),
}
SKIES: Mapping[str, tuple[Rgb, Rgb]] = {
    "pale": ((0.90, 0.93, 0.95), (0.74, 0.84, 0.92)),
    "blue": ((0.74, 0.86, 0.96), (0.33, 0.58, 0.88)),
    "dark": ((0.34, 0.36, 0.48), (0.11, 0.12, 0.22)),
    "pink": ((0.99, 0.84, 0.74), (0.80, 0.58, 0.70)),
}
"""Name -> colour at the horizon, colour at the upper border of the picture."""

# Linear sRGB -> CIE XYZ (IEC 61966-2-1), and the D65 white point.
_TO_XYZ = np.array(
    [[0.4124564, 0.2126729, 0.0193339], [0.3575761, 0.7151522, 0.1191920], [0.1804375, 0.0721750, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def srgb_to_linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 -> linear light in 0..1, any shape (IEC 61966-2-1)."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB in 0..1, any shape; values outside 0..1 are clipped (IEC 61966-2-1)."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)


def srgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) sRGB in 0..1 -> CIE L*a*b* (D65, 2 degree observer; CIE 15)."""
    xyz = srgb_to_linear(np.asarray(rgb, dtype=np.float64)) @ _TO_XYZ / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def colour_distance(rgb: Rgb, others: Sequence[Rgb]) -> float:
    """Smallest distance in Lab between an albedo and the others."""
    lab = srgb_to_lab(np.array([rgb, *others]))
    # Lightness counts half, because shading changes it most.
    return float(np.linalg.norm((lab[1:] - lab[0]) * np.array([0.5, 1.0, 1.0]), axis=1).min())
