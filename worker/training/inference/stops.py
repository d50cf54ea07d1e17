"""What of an answer may be shown: everything that cannot become a stop text any more."""

from collections.abc import Sequence


class Stops:
    """Watches a growing text for the first stop text, also where it comes in parts.

    Args:
        stops: Texts that end an answer and are not part of it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(filter(None, stops))
        self._held = ""
        self.is_found = False

    def push(self, text: str) -> str:
        """Add text; returns what may be shown of all that was held back and this.

        After a stop text was found (`is_found`), nothing more is shown.
        """
        if self.is_found:
            return ""
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.is_found = True
            self._held = ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """Return what was held back, because no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are a beginning of a stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
