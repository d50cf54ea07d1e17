"""How pages write numbers, times and sizes."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from app.web import sparkline

NOTHING = "\u2013"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits; a dash for none, the name of no number."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{value:.{digits}g}"


def count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def size(num_bytes: float | None) -> str:
    """Return bytes in decimal units, as disks are sold."""
    if num_bytes is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def age(moment: datetime | None) -> str:
    """Return how long ago a moment was, roughly."""
    if moment is None:
        return NOTHING
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for limit, unit, length in ((60, "s", 1), (3600, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // 86_400:.0f} d"


def moment(value: datetime | None) -> str:
    return NOTHING if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def isolate(text: str) -> str:
    """Return a text between marks that keep its direction of writing to itself."""
    return f"\u2068{text}\u2069"


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "count": count,
    "size": size,
    "duration": duration,
    "age": age,
    "moment": moment,
    "isolate": isolate,
    "sparkline": sparkline.path,
}
