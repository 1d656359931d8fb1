"""The limits on pose files, in one table: a few bytes of JSON can ask for any size of canvas and any memory."""

from __future__ import annotations

MAX_SIDE = 16384
"""Pixels along one side of a picture or canvas: the largest width and height of ComfyUI's own nodes."""

MAX_CANVAS_PIXELS = 2**26
"""Pixels of one canvas: 8192 x 8192, as for picture files. As a float32 hint they take 0.8 GB."""

MAX_MAP_PIXELS = 2**25
"""Pixels of a label or normal map that is converted: 5792 x 5792. The conversions take up to 1.9 GB for them."""

MAX_RELIEF_PIXELS = 2**24
"""Pixels of a depth map that becomes normals: 4096 x 4096. This takes 1.4 GB."""

MAX_DRAWN_PIXELS = 120_000_000
"""Pixels of all hints that one call draws into memory: 305 frames of 512 x 768 take 1.4 GB as float32."""

MAX_FILE_PIXELS = 2**30
"""Pixels of all canvases of one file, which are drawn one after the other: 2730 frames of 512 x 768."""

MAX_FRAMES = 10_000
"""Frames of one file: five minutes of video."""

MAX_PEOPLE = 1000
"""People of one frame. Each takes about half a millisecond to draw."""

MAX_JSON_BYTES = 2**25
"""Size of a pose file: 1000 frames with ten people, hands and faces. Parsed JSON takes about ten times as much."""

MAX_COORDINATE = 1_000_000
"""Distance in pixels of a keypoint from the corner. Points outside the canvas are drawn as far as they reach in."""
