"""ComfyUI's node that holds a curve."""

from __future__ import annotations

from typing import Any

from ...controlnet_core.control.points import PointCurve, read_points
from ..fields import Field, optional, socket
from ..node import Node

LINE = {"points": [[0.0, 0.0], [1.0, 1.0]], "interpolation": "monotone_cubic"}


class CurveEditor(Node):
    """A curve through points that are dragged in the editor."""

    CATEGORY = "utilities"
    RETURN_TYPES = ("CURVE",)
    RETURN_NAMES = ("curve",)
    # The editor has a widget for this type: its value is stored as that of other widgets.
    INPUTS = (
        Field("curve", "CURVE", default=LINE, widget_type="CURVE"),
        *optional(socket("HISTOGRAM", "histogram")),
    )

    def run(self, curve: Any, histogram: Any = None) -> tuple[PointCurve]:
        """-> CURVE. The histogram is only shown in the editor."""
        return (read_points(curve),)
