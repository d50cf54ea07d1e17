"""Room on the disk: asked for before something is written, and recognized when it ran out."""

import errno
from pathlib import Path
from shutil import disk_usage

# Beside what is written there are logs, events and other jobs.
_SHARE, _RESERVE_BYTES = 1.2, 16 << 20
SOME_BYTES = 64 << 20
"""What is waited for where nobody knows how much is needed."""


class NotEnoughSpace(OSError):
    """There is too little room for what is to be written.

    Args:
        needed_bytes: Free space to wait for.
        message: What was to be written, and where.
    """

    def __init__(self, needed_bytes: int, message: str) -> None:
        super().__init__(errno.ENOSPC, message)
        self.needed_bytes = needed_bytes


def require(folder: Path, num_bytes: int) -> None:
    """Check that there is room for `num_bytes` and a reserve.

    Raises:
        NotEnoughSpace: There is not; the message has both numbers.
    """
    free, needed = disk_usage(folder).free, int(num_bytes * _SHARE) + _RESERVE_BYTES
    if free < needed:
        raise NotEnoughSpace(
            needed, f"{needed / 1e6:.1f} MB must be free to save, and {free / 1e6:.1f} MB are"
        )


def is_full(error: BaseException) -> bool:
    """Tell whether a write failed for want of room, by the disk or by a quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def needed_after(error: BaseException, folder: Path) -> int:
    """Return the free space to wait for after `error`, which `is_full` said yes to."""
    if isinstance(error, NotEnoughSpace):
        return error.needed_bytes
    # A quota, or a neighbour that was faster: what is free now was not enough.
    return disk_usage(folder).free + SOME_BYTES
