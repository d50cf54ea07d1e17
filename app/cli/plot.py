"""Curves in a terminal: braille dots between labelled axes, and sparklines in one line."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

METRICS: Mapping[str, str] = {
    "loss": "loss, nats per target token",
    "grad_norm": "gradient norm before clipping",
    "param_norm": "norm of the adapter's weights",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens per second",
    "step_seconds": "seconds per step",
    "peak_memory_bytes": "peak memory, bytes",
}
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-=+*#@"
_NOT_FINITE, _ASCII_NOT_FINITE = "\u00d7", "x"  # a cross that no letter is taken for
# Bit of each dot of a braille character: four rows of two columns.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_LABEL_WIDTH = 9

Point = tuple[float, float | None]


@dataclass
class History:
    """Values of a run so far, in bounded memory: neighbours are merged when there are too many."""

    capacity: int = 512
    _values: list[float | None] = field(default_factory=list[float | None])
    _stride: int = 1
    _open: list[float | None] = field(default_factory=list[float | None])

    def add(self, value: float | None) -> None:
        self._open.append(value)
        if len(self._open) == self._stride:
            self._values.append(_mean(self._open))
            self._open = []
        if len(self._values) >= self.capacity:
            pairs = zip(self._values[::2], self._values[1::2], strict=False)
            self._values = [_mean(pair) for pair in pairs]
            self._stride *= 2

    @property
    def values(self) -> Sequence[float | None]:
        return [*self._values, _mean(self._open)] if self._open else self._values


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Draw values in one line of at most `width` characters; what is not finite is a cross."""
    if not values or width < 1:
        return ""
    bars, cross = _alphabet()
    columns = (
        [
            _mean(values[start * len(values) // width : (start + 1) * len(values) // width])
            for start in range(width)
        ]
        if len(values) > width
        else values
    )
    finite = [value for value in columns if value is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = high - low
    return "".join(
        cross if value is None else bars[_level(value - low, span, len(bars))] for value in columns
    )


def curve(
    points: Sequence[Point],
    *,
    title: str,
    width: int,
    height: int = 15,
    log: bool = False,
    marks: Sequence[Point] = (),
) -> list[str]:
    """Draw a curve; each column shows the lowest and the highest value of its steps.

    Args:
        points: (step, value) in the order of steps; a value of None was not finite.
        title: What the values are.
        width: Columns of the whole plot, labels included.
        height: Lines between the axes.
        log: Whether the values are drawn on a logarithmic axis; those below or at 0 are left out.
        marks: Further points, drawn as `o`.
    """
    finite = [(x, y) for x, y in [*points, *marks] if y is not None and not (log and y <= 0)]
    if not finite:
        return [title, "no finite values yet"]
    scale = math.log10 if log else float
    canvas = _Canvas(
        columns=max(width - _LABEL_WIDTH - 2, 10),
        rows=height,
        x=(min(x for x, _ in finite), max(x for x, _ in finite)),
        y=(min(scale(y) for _, y in finite), max(scale(y) for _, y in finite)),
    )
    previous: Point | None = None
    for x, y in points:
        if y is None or (log and y <= 0):
            canvas.lose(x)
            previous = None
            continue
        canvas.line(previous or (x, scale(y)), (x, scale(y)))
        previous = (x, scale(y))
    for x, y in marks:
        if y is not None and not (log and y <= 0):
            canvas.mark(x, scale(y))
    return [title, *_framed(canvas, log=log), *_legend(canvas, has_marks=bool(marks))]


class _Canvas:
    """Braille dots, addressed by values."""

    def __init__(
        self, *, columns: int, rows: int, x: tuple[float, float], y: tuple[float, float]
    ) -> None:
        self.columns, self.rows, self.x, self.y = columns, rows, x, y
        self.num_lost = 0
        self.lost_columns: set[int] = set()
        self._dots = [[0] * columns for _ in range(rows)]
        self._marks: set[tuple[int, int]] = set()

    def line(self, start: Point, end: Point) -> None:
        """Draw from a point to another, without a gap in between."""
        (x1, y1), (x2, y2) = self._dot(start), self._dot(end)
        steps = max(abs(x2 - x1), abs(y2 - y1), 1)
        for step in range(steps + 1):
            self._set(round(x1 + (x2 - x1) * step / steps), round(y1 + (y2 - y1) * step / steps))

    def mark(self, x: float, y: float) -> None:
        column, row = self._dot((x, y))
        self._marks.add((row // 4, column // 2))

    def lose(self, x: float) -> None:
        """Remember where a value was not finite."""
        self.num_lost += 1
        self.lost_columns.add(self._dot((x, self.y[0]))[0] // 2)

    def text(self, row: int) -> str:
        is_braille = _can_write("⠁")
        return "".join(
            "o"
            if (row, column) in self._marks
            else " "
            if not bits
            else chr(0x2800 + bits)
            if is_braille
            else "*"
            for column, bits in enumerate(self._dots[row])
        )

    def _dot(self, point: Point) -> tuple[int, int]:
        x, y = point
        assert y is not None
        across = _share(x, self.x) * (self.columns * 2 - 1)
        down = (1 - _share(y, self.y)) * (self.rows * 4 - 1)
        return round(across), round(down)

    def _set(self, column: int, row: int) -> None:
        self._dots[row // 4][column // 2] |= _DOTS[row % 4][column % 2]


def _framed(canvas: _Canvas, *, log: bool) -> list[str]:
    side, corner, floor = ("│", "└", "─") if _can_write("│") else ("|", "+", "-")
    labels = _labels(canvas, log=log)
    lines: list[str] = []
    for row in range(canvas.rows):
        label = labels.get(row, "")
        lines.append(f"{label:>{_LABEL_WIDTH}} {side}{canvas.text(row)}".rstrip())
    lines.append(" " * (_LABEL_WIDTH + 1) + corner + floor * canvas.columns)
    if canvas.lost_columns:
        _, cross = _alphabet()
        crosses = "".join(
            cross if column in canvas.lost_columns else " " for column in range(canvas.columns)
        )
        lines.append((" " * (_LABEL_WIDTH + 2) + crosses).rstrip())
    return [*lines, " " * (_LABEL_WIDTH + 2) + _steps_line(canvas)]


def _labels(canvas: _Canvas, *, log: bool) -> dict[int, str]:
    """Return row -> value for the top, the middle and the bottom, with digits to tell apart."""
    low, high = canvas.y
    rows = (0, canvas.rows // 2, canvas.rows - 1)
    values = [high - (high - low) * row / max(canvas.rows - 1, 1) for row in rows]
    labels: list[str] = []
    for digits in (4, 5, 6, 7):
        labels = [f"{10**value if log else value:.{digits}g}" for value in values]
        if len(set(labels)) == len(labels):
            break
    return dict(zip(rows, labels, strict=True))


def _steps_line(canvas: _Canvas) -> str:
    first, last = (f"{value:g}" for value in canvas.x)
    middle = f"{(canvas.x[0] + canvas.x[1]) / 2:g}"
    line = first.ljust(canvas.columns - len(last)) + last
    at = (canvas.columns - len(middle)) // 2
    if len(first) + 2 <= at and at + len(middle) + 2 <= canvas.columns - len(last):
        line = line[:at] + middle + line[at + len(middle) :]
    return line


def _legend(canvas: _Canvas, *, has_marks: bool) -> list[str]:
    parts = ["step"]
    if has_marks:
        parts.append("o evaluation")
    if canvas.num_lost:
        parts.append(f"{_alphabet()[1]} {canvas.num_lost} not drawn: not finite, or not above 0")
    return [" " * (_LABEL_WIDTH + 2) + "   ".join(parts)]


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return 0.5 if high == low else min(max((value - low) / (high - low), 0.0), 1.0)


def _level(above: float, span: float, levels: int) -> int:
    return 0 if span <= 0 else min(int(above / span * levels), levels - 1)


def _mean(values: Sequence[float | None]) -> float | None:
    # One that was not finite must stay visible among those that were.
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) or not known else sum(known) / len(known)


def _alphabet() -> tuple[str, str]:
    is_wide = _can_write(_BARS)
    return (_BARS, _NOT_FINITE) if is_wide else (_ASCII_BARS, _ASCII_NOT_FINITE)


def _can_write(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
