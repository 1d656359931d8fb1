"""The limits on what is read from files: one table for the whole package, each number with its reason.

A small file can ask for any amount of memory. Each reader compares with these numbers before it allocates, and its
error names the size that it found and the limit.
"""

from __future__ import annotations

MAX_PICTURE_PIXELS = 2**26
"""Pixels of one picture, or of all frames that are held in memory together: 8192 x 8192.

As float32 RGB this is 0.8 GB, so that decoding one picture stays below 2 GB. It is the memory that counts: a PNG of
20 kB can hold 13000 x 13000 equal pixels.
"""

MAX_ANIMATION_PIXELS = 2**28
"""Pixels of all frames of one file, read one after the other: 1024 frames of 512 x 512, a few seconds to decode."""

MAX_CANVAS_PIXELS = 2**26
"""Pixels of all pose frames that are drawn together. The canvas size is only a number in the JSON text."""

MAX_CANVAS_SIDE = 16384
"""Side of a pose canvas, the largest width and height that ComfyUI's own nodes accept."""

MAX_POSE_JSON_BYTES = 2**26
"""Size of a pose file. One frame with ten whole bodies takes about 30 kB, so this is more than 2000 frames."""
