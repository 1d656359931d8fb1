"""Poses: keypoints as data, and the pictures that the pose ControlNets read."""

from __future__ import annotations

from .draw import draw_poses

__all__ = ["draw_poses"]
