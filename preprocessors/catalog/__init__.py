"""The catalogue of all preprocessors. It is data only: functions are named in it and imported when they run."""

from __future__ import annotations

from ..entry import Entry
from .learned import LEARNED
from .lines import LINES
from .maps import MAPS
from .pictures import PICTURES
from .pretrained import PRETRAINED

ENTRIES: tuple[Entry, ...] = LINES + MAPS + PICTURES + LEARNED + PRETRAINED
