"""Preprocessors: hints that the ControlNets were trained to read, from pictures, maps and poses.

`process("canny", image)` runs one by name; `names()` lists them and `get(name)` describes one. Importing this package
loads neither numpy nor torch nor cv2.
"""

from __future__ import annotations

from .entry import Entry, Parameter, Weights
from .errors import ParameterError, PictureError, PreprocessorError, WeightsError
from .registry import get, names, process

__all__ = [
    "Entry",
    "Parameter",
    "ParameterError",
    "PictureError",
    "PreprocessorError",
    "Weights",
    "WeightsError",
    "get",
    "names",
    "process",
]
