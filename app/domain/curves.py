"""Curves of a run: points that are few enough to draw, and that no extreme is missing from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.domain.metrics import StepMetrics

# Extremes are kept of these; the others hardly move between two steps.
_KEPT = ("loss", "grad_norm", "tokens_per_second")
# First, last, and for each of those its lowest, its highest and one that was not finite.
MOST_KEPT = 2 + 3 * len(_KEPT)
# A loss is a spike when it is so many standard deviations above its mean of late.
_SPIKE_DEVIATIONS = 6.0
_SPIKE_MEMORY = 0.05
_SPIKE_AFTER_STEPS = 20


class Point(NamedTuple):
    """What curves show of one step; None stands for a value that was not finite."""

    step: int
    tokens: int
    """Tokens up to and with the step."""
    time: float
    """Seconds of training up to and with the step."""
    loss: float | None
    grad_norm: float | None
    param_norm: float | None
    learning_rate: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass
class Course:
    """What a run did up to a step: sums, and what its loss usually is."""

    tokens: int = 0
    seconds: float = 0.0
    num_seen: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def advance(self, measured: StepMetrics) -> tuple[Point, bool]:
        """Take in the next step; return its point, and whether its loss is a spike."""
        self.tokens += measured.num_tokens
        self.seconds += measured.step_seconds
        point = Point(
            step=measured.step,
            tokens=self.tokens,
            time=round(self.seconds, 3),
            loss=measured.loss,
            grad_norm=measured.grad_norm,
            param_norm=measured.param_norm,
            learning_rate=measured.learning_rate,
            tokens_per_second=measured.tokens_per_second,
            peak_memory_bytes=measured.peak_memory_bytes,
        )
        return point, self._is_spike(measured.loss)

    def _is_spike(self, loss: float | None) -> bool:
        if loss is None:
            return False
        off = loss - self.mean
        is_known = self.num_seen >= _SPIKE_AFTER_STEPS and self.variance > 0
        if is_known and off > _SPIKE_DEVIATIONS * self.variance**0.5:
            return True  # and it does not move what is usual
        self.num_seen += 1
        share = max(_SPIKE_MEMORY, 1 / self.num_seen)
        self.mean += share * off
        self.variance = (1 - share) * (self.variance + share * off * off)
        return False


def kept(points: Sequence[Point]) -> list[Point]:
    """Return the at most MOST_KEPT points that stand for all of these."""
    if len(points) <= 2:
        return list(points)
    places = {0, len(points) - 1}
    for name in _KEPT:
        values = [getattr(point, name) for point in points]
        places |= extremes(values)
        places.update([index for index, value in enumerate(values) if value is None][:1])
    return [points[index] for index in sorted(places)]


def extremes(values: Sequence[float | None]) -> set[int]:
    """Return the places of the lowest and of the highest value among the finite ones."""
    known = {index: value for index, value in enumerate(values) if value is not None}
    if not known:
        return set()
    return {min(known, key=known.__getitem__), max(known, key=known.__getitem__)}


def thinned(points: Iterable[Point], *, first: int, last: int, max_points: int) -> list[Point]:
    """Return the points of steps `first` to `last`, or those of each stretch that stand for it."""
    count = max(1, last - first + 1)
    num_stretches = count if count <= max_points else max(1, max_points // MOST_KEPT)
    width = -(-count // num_stretches)
    found: list[Point] = []
    stretch: list[Point] = []
    for point in points:
        if not first <= point.step <= last:
            continue
        if stretch and (point.step - first) // width != (stretch[0].step - first) // width:
            found += kept(stretch)
            stretch = []
        stretch.append(point)
    return found + kept(stretch)
