"""The models and images that come with the package, and the files of the user beside them, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MARK = "(built in)"
_PARTS = ("base", "vae")
# The order of the paper's conditions.
_ORDER = ("canny", "lines", "soft_edge", "scribble", "openpose", "segmentation", "normal", "depth", "lineart")


def checkpoints(assets: Path) -> Mapping[str, Path]:
    """Name -> file of the built-in checkpoints."""
    base = assets / "demo_base.safetensors"
    return {f"demo {_MARK}": base} if base.is_file() else {}


def controlnets(assets: Path) -> Mapping[str, Path]:
    """Name -> file of the built-in ControlNets."""
    files = {path.stem.removeprefix("demo_"): path for path in assets.glob("demo_*.safetensors")}
    kinds = {kind: path for kind, path in files.items() if kind not in _PARTS}
    # Saved workflows contain the name, never the position, so the order may change.
    known = [kind for kind in _ORDER if kind in kinds]
    others = sorted(kind for kind in kinds if kind not in _ORDER)
    return {f"demo {kind.replace('_', ' ')} {_MARK}": kinds[kind] for kind in [*known, *others]}


def photos(assets: Path) -> Mapping[str, Path]:
    """Name -> file of the example photographs."""
    return {path.stem: path for path in sorted((assets / "examples").glob("*.jpg"))}


def base_names(host: Any) -> list[str]:
    """Names of all checkpoints, the built-in ones first."""
    return [*checkpoints(host.assets_dir), *host.files("checkpoints")]


def base_path(host: Any, name: str) -> Path:
    """The file of a checkpoint by name. Raises PathError or MissingFileError."""
    return checkpoints(host.assets_dir).get(name) or host.find("checkpoints", name)


def net_names(host: Any) -> list[str]:
    """Names of all ControlNets, the built-in ones first."""
    return [*controlnets(host.assets_dir), *host.files("controlnet")]


def net_path(host: Any, name: str) -> Path:
    """The file of a ControlNet by name. Raises PathError or MissingFileError."""
    return controlnets(host.assets_dir).get(name) or host.find("controlnet", name)
