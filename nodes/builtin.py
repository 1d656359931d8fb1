"""The models and pictures that come with the package, by the names that nodes list them under."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_MARK = "(built in)"
_PARTS = ("base", "vae")
_ORDER = ("canny", "scribble", "depth", "openpose", "segmentation")


def checkpoints(assets: Path) -> Mapping[str, Path]:
    """Name -> file of the built-in checkpoints that are there."""
    base = assets / "demo_base.safetensors"
    return {f"demo {_MARK}": base} if base.is_file() else {}


def controlnets(assets: Path) -> Mapping[str, Path]:
    """Name -> file of the built-in ControlNets that are there."""
    files = {path.stem.removeprefix("demo_"): path for path in assets.glob("demo_*.safetensors")}
    kinds = {kind: path for kind, path in files.items() if kind not in _PARTS}
    known = [kind for kind in _ORDER if kind in kinds]
    others = sorted(kind for kind in kinds if kind not in _ORDER)
    return {f"demo {kind.replace('_', ' ')} {_MARK}": kinds[kind] for kind in [*known, *others]}


def photos(assets: Path) -> Mapping[str, Path]:
    """Name -> file of the example photographs."""
    return {path.stem: path for path in sorted((assets / "examples").glob("*.jpg"))}
