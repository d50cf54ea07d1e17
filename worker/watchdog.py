"""The watchdog: notices a trainer that lives and does nothing, by a counter that stands still."""

import time
from pathlib import Path


class Watchdog:
    """Looks at the counter that a trainer moves whenever it has done a piece of its work.

    A lease says that the supervisor lives; only this says that the training does.

    Args:
        pulse: The file with the counter; its content is compared, never read as a number.
        seconds: How long it may stand still.
    """

    def __init__(self, pulse: Path, *, seconds: float) -> None:
        self._pulse = pulse
        self._seconds = seconds
        self._every = min(1.0, seconds / 10)
        self._seen: bytes | None = None
        self._moved_at = self._looked_at = time.monotonic()

    def start(self) -> None:
        """Count from now on; before, there was nothing that could move."""
        self._moved_at = time.monotonic()

    def is_still(self) -> bool:
        """Tell whether the counter has stood still for too long."""
        now = time.monotonic()
        if now - self._looked_at >= self._every:
            self._looked_at = now
            seen = self._read()
            if seen != self._seen:
                self._seen, self._moved_at = seen, now
        return now - self._moved_at > self._seconds

    def _read(self) -> bytes | None:
        try:
            return self._pulse.read_bytes()
        except OSError:
            return self._seen  # a volume that is away says nothing of the trainer
