"""What the home holds: bytes by kind, and what is left on its disk."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from app.settings import Settings

KINDS = ("models", "datasets", "jobs", "cache", "logs")
# A home can hold many files; after this long the sum is given up, and said to be a lower bound.
_MOST_SECONDS = 1.0


@dataclass(frozen=True)
class Disk:
    """The disk that the home is on, in bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class Usage:
    """What the files of the home take in bytes; models that are links count at their place."""

    by_kind: Mapping[str, int]
    is_whole: bool
    """False where there were too many files to count all of them."""


def disk(settings: Settings) -> Disk | None:
    """Return the room on the disk; None where it cannot be asked."""
    try:
        found = shutil.disk_usage(settings.home)
    except OSError:
        return None
    return Disk(found.total, found.free)


def usage(settings: Settings) -> Usage:
    """Add up the files of the home by kind, for a second at most."""
    until = monotonic() + _MOST_SECONDS
    sums = {kind: _size(settings.home / kind, until) for kind in KINDS}
    return Usage(sums, monotonic() < until)


def _size(folder: Path, until: float) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        if monotonic() >= until:
            break
        total += _sum(place, names)
    return total


def _sum(place: str, names: Sequence[str]) -> int:
    total = 0
    for name in names:
        try:
            total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 (10x faster)
        except OSError:
            continue  # removed meanwhile
    return total
