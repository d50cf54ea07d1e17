"""Queries on rollups: stretches of a job's current branch, each by the points that stand for it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import and_, delete, func, insert, or_, select
from sqlalchemy.orm import Session

from app.db.tables import StepRollupRow
from app.domain.curves import Course, Point

# Steps in a stretch of each level, counted from 1; one of a level is made of 16 of the level below.
WIDTHS = {1: 64, 2: 1024, 3: 16_384, 4: 262_144}


@dataclass(frozen=True)
class Rollup:
    """Steps `bucket * width + 1` to `(bucket + 1) * width` of the current branch."""

    level: int
    bucket: int
    points: Sequence[Point]
    spikes: Sequence[int]
    """Steps whose loss was a spike."""
    course: Course
    """What the run did up to the end of this."""

    @property
    def end(self) -> int:
        """Its last step."""
        return (self.bucket + 1) * WIDTHS[self.level]


def insert_many(session: Session, job_id: str, rollups: Iterable[Rollup]) -> None:
    for each in rollups:
        values = {
            "job_id": job_id,
            "level": each.level,
            "bucket": each.bucket,
            "body": json.dumps(
                {"points": each.points, "spikes": each.spikes, "course": asdict(each.course)},
                separators=(",", ":"),
            ),
        }
        session.execute(insert(StepRollupRow).values(values))


def newest(session: Session, job_id: str) -> Mapping[int, int]:
    """Return the number of the last stretch of each level; levels without one are left out."""
    query = select(StepRollupRow.level, func.max(StepRollupRow.bucket))
    query = query.where(StepRollupRow.job_id == job_id).group_by(StepRollupRow.level)
    return {row[0]: row[1] for row in session.execute(query)}


def between(session: Session, job_id: str, *, level: int, first: int, end: int) -> Sequence[Rollup]:
    """Return the stretches `first` to before `end` of a level, in their order."""
    query = (
        select(StepRollupRow.bucket, StepRollupRow.body)
        .where(
            StepRollupRow.job_id == job_id,
            StepRollupRow.level == level,
            StepRollupRow.bucket >= first,
            StepRollupRow.bucket < end,
        )
        .order_by(StepRollupRow.bucket)
    )
    return [_rollup(level, bucket, body) for bucket, body in session.execute(query)]


def last_before(session: Session, job_id: str, *, step: int) -> Rollup | None:
    """Return the last stretch of the first level that ends before a step."""
    query = (
        select(StepRollupRow.bucket, StepRollupRow.body)
        .where(
            StepRollupRow.job_id == job_id,
            StepRollupRow.level == 1,
            StepRollupRow.bucket < (step - 1) // WIDTHS[1],
        )
        .order_by(StepRollupRow.bucket.desc())
        .limit(1)
    )
    row = session.execute(query).first()
    return None if row is None else _rollup(1, row[0], row[1])


def remove(session: Session, job_id: str, *, after_step: int) -> None:
    """Remove every stretch that reaches past a step."""
    reaching = [
        and_(StepRollupRow.level == level, StepRollupRow.bucket >= after_step // width)
        for level, width in WIDTHS.items()
    ]
    statement = delete(StepRollupRow).where(StepRollupRow.job_id == job_id, or_(*reaching))
    session.execute(statement.execution_options(synchronize_session=False))


def _rollup(level: int, bucket: int, body: str) -> Rollup:
    found = json.loads(body)
    return Rollup(
        level=level,
        bucket=bucket,
        points=[Point(*point) for point in found["points"]],
        spikes=found["spikes"],
        course=Course(**found["course"]),
    )
