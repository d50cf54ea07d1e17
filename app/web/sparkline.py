"""The course of a loss as the path of a small drawing."""

from collections.abc import Sequence

WIDTH, HEIGHT = 96, 22
_MARGIN = 2


def path(values: Sequence[float | None]) -> str:
    """Return the `d` of an SVG path in a field of WIDTH x HEIGHT; a gap where a value is None.

    It is empty where there are not two values to draw a line through.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    across = (WIDTH - 2 * _MARGIN) / (len(values) - 1)
    down = HEIGHT - 2 * _MARGIN
    pieces: list[str] = []
    is_drawing = False
    for index, value in enumerate(values):
        if value is not None:
            x, y = _MARGIN + index * across, _MARGIN + (high - value) / span * down
            pieces.append(f"{'L' if is_drawing else 'M'}{x:.1f} {y:.1f}")
        is_drawing = value is not None
    return "".join(pieces)
