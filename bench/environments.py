"""An environment for each peer, made from its pins, so that no peer's dependencies hold back another's or ours.

`.venv-bench/<peer>/` is made anew when its requirements.txt is another one than last time.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv-bench"
INSTALL_PATIENCE = 900.0

_VERSIONS = "import sys, importlib.metadata as m; [print(n, m.version(n)) for n in sys.argv[1:]]"


class Unavailable(Exception):
    """A contestant cannot run on this machine; says why."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def bin(self) -> Path:
        """The folder of its programs."""
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.bin / "python"

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Return the versions of distributions in it, in this order."""
        told = _run([str(self.python), "-c", _VERSIONS, *packages])
        return dict(line.split() for line in told.splitlines())


def ensure(peer: Path) -> Environment:
    """Return the environment of the peer in this folder, made if need be. Raises Unavailable when that fails."""
    requirements = peer / "requirements.txt"
    if not requirements.exists():
        raise Unavailable(f"it has no {requirements.relative_to(ROOT)}")
    environment = Environment(FOLDER / peer.name)
    stamp = environment.folder / "made-from"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest and environment.python.exists():
        return environment
    sys.stderr.write(f"Making an environment for {peer.name}\n")
    _run([sys.executable, "-m", "venv", "--clear", str(environment.folder)])
    _run(
        [
            *(str(environment.python), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"),
            *("install", "--require-hashes", "-r", str(requirements)),
        ]
    )
    stamp.write_text(digest)
    return environment


def demand(programs: Sequence[str]) -> None:
    """Raise Unavailable when a program is not on the PATH."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise Unavailable(f"there is no {', no '.join(missing)} here")


def _run(command: Sequence[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"this took more than {INSTALL_PATIENCE:.0f} s: {' '.join(command[1:4])}") from None
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip() and not line.startswith("Looking in")]
        raise Unavailable(" ".join(lines[-3:])[-400:] or f"{command[0]} ended with {ended.returncode}")
    return ended.stdout
