"""Requests that a client sends again: a POST that creates makes one thing, however often it comes.

The SDK sends no idempotency key. It marks what it sends again with `x-stainless-retry-count`; then
the newest thing that was made from the same body just now is the answer.
"""

import hashlib
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

# Longer than a client waits for an answer, with all the times that it tries again.
WITHIN_SECONDS = 900.0


@dataclass(frozen=True)
class Attempt:
    """What a request says of itself.

    Args:
        key: Its Idempotency-Key, if it has one.
        is_repeat: Whether the client sent the same request before.
    """

    key: str | None = None
    is_repeat: bool = False


class _Flights:
    """Lets requests with the same body through one by one: the second finds what the first made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def alone(self, name: str) -> Generator[None]:
        with self._lock:
            lock, users = self._flights.get(name, (threading.Lock(), 0))
            self._flights[name] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._flights[name]
                if users == 1:
                    del self._flights[name]
                else:
                    self._flights[name] = (lock, users - 1)


flights = _Flights()


def digest(*parts: object) -> str:
    """Return a name for a body, the same for the same parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
