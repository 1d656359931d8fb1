"""`python -m comfyui_controlnet_core` is the command `controlnet`."""

from __future__ import annotations

from .workflows.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
