"""Rollups of a job's steps, made as these are stored: a long run opens like a short one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from sqlalchemy.orm import Session

from app.db import rollups as queries
from app.db import trainer_events as event_queries
from app.db.rollups import WIDTHS, Rollup
from app.domain.curves import Course, Point, kept
from app.domain.metrics import StepMetrics

# A job whose steps were stored without them catches up by so many steps at a time.
_MOST_AT_ONCE = 2048
_MOST_SPIKES = 100
# So many steps are read one by one, and so many stretches at once.
_MOST_STEPS = 4096
_MOST_STRETCHES = 1500


def extend(session: Session, job_id: str, steps: Sequence[int]) -> None:
    """Make the stretches that stored steps completed; `steps` are the new ones in their order."""
    if not steps or (steps[0] - 1) // WIDTHS[1] == steps[-1] // WIDTHS[1]:
        return
    _extend_all(session, job_id, steps[-1])


def rebuild(session: Session, job_id: str) -> None:
    """Make all stretches of a job whose steps came without them."""
    last = event_queries.last_metrics(session, job_id)
    if last is None:
        return
    covered = 0
    while (reached := _extend_all(session, job_id, last.step)) > covered:
        covered = reached


def _extend_all(session: Session, job_id: str, last_step: int) -> int:
    """Make some more stretches of every level; return the step up to which the first reaches."""
    newest = queries.newest(session, job_id)
    reached = covered = _extend_first(session, job_id, newest.get(1, -1), last_step)
    for level in sorted(WIDTHS)[1:]:
        covered = _extend_next(session, job_id, level, newest.get(level, -1), covered)
    return reached


def _extend_first(session: Session, job_id: str, newest: int, last_step: int) -> int:
    """Make stretches of the first level from steps; return the step up to which they reach."""
    width, limit = WIDTHS[1], _MOST_AT_ONCE
    done = (newest + 1) * width
    found = event_queries.metrics(session, job_id, after_step=done, limit=limit, superseded=False)
    covered = last_step // width * width
    if len(found) == limit:
        covered = min(covered, (found[-1].step - 1) // width * width)
    before = queries.last_before(session, job_id, step=done + 1)
    course = before.course if before else Course()
    made: list[Rollup] = []
    for bucket, group in groupby(found, key=lambda each: (each.step - 1) // width):
        if (bucket + 1) * width > covered:
            break
        points, spikes = _advance(course, group)
        made.append(_rollup(1, bucket, points, spikes, course))
    queries.insert_many(session, job_id, made)
    return covered


def _extend_next(session: Session, job_id: str, level: int, newest: int, covered: int) -> int:
    """Make stretches of a level from those of the level below, which reach up to `covered`."""
    width = WIDTHS[level]
    parts = width // WIDTHS[level - 1]
    end = covered // width
    if newest + 1 < end:
        first = (newest + 1) * parts
        found = queries.between(session, job_id, level=level - 1, first=first, end=end * parts)
        made: list[Rollup] = []
        for bucket, group in groupby(found, key=lambda each: each.bucket // parts):
            inner = list(group)
            points = [point for each in inner for point in each.points]
            spikes = [step for each in inner for step in each.spikes]
            made.append(_rollup(level, bucket, points, spikes, inner[-1].course))
        queries.insert_many(session, job_id, made)
    return end * width


def _rollup(
    level: int, bucket: int, points: Sequence[Point], spikes: Sequence[int], course: Course
) -> Rollup:
    own = Course(**vars(course))  # the given one goes on
    return Rollup(level, bucket, kept(points), spikes[:_MOST_SPIKES], own)


def _advance(course: Course, steps: Iterable[StepMetrics]) -> tuple[list[Point], list[int]]:
    points: list[Point] = []
    spikes: list[int] = []
    for measured in steps:
        point, is_spike = course.advance(measured)
        points.append(point)
        if is_spike:
            spikes.append(measured.step)
    return points, spikes


def read(
    session: Session, job_id: str, *, first: int, last: int, max_points: int
) -> Iterator[tuple[Sequence[Point], Sequence[int]]]:
    """Yield the points of steps `first` to `last` with the spikes among them, piece by piece.

    Every step comes where there are no more than `max_points`. Of a long range those points come
    that stand for their stretch: no extreme is missing.
    """
    count = last - first + 1
    level = 0
    if count > max(max_points, _MOST_STEPS):
        fits = (level for level, width in WIDTHS.items() if count // width <= _MOST_STRETCHES)
        level = next(fits, max(WIDTHS))
    yield from _read(session, job_id, level, first, last, queries.newest(session, job_id))


def _read(
    session: Session, job_id: str, level: int, first: int, last: int, newest: Mapping[int, int]
) -> Iterator[tuple[Sequence[Point], Sequence[int]]]:
    """Read whole stretches of a level, and what is beside them from the level below."""
    if first > last:
        return
    if level == 0:
        yield from _read_steps(session, job_id, first, last)
        return
    width = WIDTHS[level]
    start = -(-(first - 1) // width)
    end = min(last // width, newest.get(level, -1) + 1)
    if start >= end:
        yield from _read(session, job_id, level - 1, first, last, newest)
        return
    yield from _read(session, job_id, level - 1, first, start * width, newest)
    for each in queries.between(session, job_id, level=level, first=start, end=end):
        yield each.points, each.spikes
    yield from _read(session, job_id, level - 1, end * width + 1, last, newest)


def _read_steps(
    session: Session, job_id: str, first: int, last: int
) -> Iterator[tuple[Sequence[Point], Sequence[int]]]:
    before = queries.last_before(session, job_id, step=first)
    course = before.course if before else Course()
    after = before.end if before else 0
    while after < last:
        limit = min(_MOST_STEPS, last - after)
        found = event_queries.metrics(
            session, job_id, after_step=after, limit=limit, superseded=False
        )
        points, spikes = _advance(course, (each for each in found if each.step <= last))
        # Those before `first` were read for the sums.
        yield [each for each in points if each.step >= first], [s for s in spikes if s >= first]
        if len(found) < limit:
            return
        after = found[-1].step
