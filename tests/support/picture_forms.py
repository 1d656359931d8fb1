"""Forms of picture files that need more than the lowest supported Pillow."""

from __future__ import annotations

import pytest
from PIL import Image


def can_write(form: str) -> bool:
    """Whether this Pillow writes pictures of a form."""
    Image.init()
    return form in Image.SAVE


AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not can_write("AVIF"), reason="this Pillow writes no AVIF"))
