"""What `dispatcher doctor` finds, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "look", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined: in order, worth a look, or wrong. `hint` says what to do."""

    level: Level
    area: str
    message: str
    hint: str | None = None
