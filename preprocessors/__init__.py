"""Preprocessors: hints that the ControlNets were trained to read, from pictures, maps and poses.

`process("canny", image)` runs one; `registry.get(name)` and `names()` say what there is. Importing this
package loads neither numpy nor torch nor cv2.
"""

from __future__ import annotations

from .errors import ParameterError, PictureError, PreprocessorError, WeightsError
from .registry import Entry, Parameter, Weights, get, names, process

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
