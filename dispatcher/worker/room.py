"""Whether there is room for more: a disk that is nearly full, or too many calls that wait, pause the sources."""

from __future__ import annotations

import shutil
from pathlib import Path

from dispatcher.settings import Settings


class Room:
    """Judges by the settings. `disk` is where an SQLite store lies; a server's disk is the server's business."""

    def __init__(self, settings: Settings, *, disk: Path | None) -> None:
        self._settings = settings
        self._disk = disk

    def lacks(self, waiting_calls: int) -> str | None:
        """Say why nothing new is to be taken now, None when there is room."""
        if self._disk is not None:
            free_mb = shutil.disk_usage(self._disk).free // 2**20
            if free_mb < self._settings.min_free_mb:
                return f"{free_mb} MB free on the disk, {self._settings.min_free_mb} MB wanted"
        if waiting_calls >= self._settings.max_ready:
            return f"{waiting_calls} calls wait, at most {self._settings.max_ready} may"
        return None
