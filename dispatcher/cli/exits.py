"""The exit codes, the same for every verb."""

from __future__ import annotations

from typing import Final

OK: Final = 0
PROBLEMS: Final = 1  # problems were found, or nothing matched
USAGE: Final = 2
CANNOT_START: Final = 3  # the settings, the rulebook or the store
BROKER_UNREACHABLE: Final = 4
RESTART_ME: Final = 75  # EX_TEMPFAIL: gave up, to be started again
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
