"""Step metrics as readers ask for them: few points of a long run, markers, CSV."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.domain.curves import extremes
from app.domain.errors import InvalidInput
from app.domain.groups import nearest, shown
from app.domain.metrics import StepMetrics
from app.services import curves, jobs
from app.services.curves import Columns, Marker

_ROWS = 5000
_AXES = ("step", "tokens", "time")
CHART_METRICS = tuple(name for name in Columns.model_fields if name not in _AXES)
CSV_METRICS = tuple(name for name in StepMetrics.model_fields if name != "step")


@dataclass(frozen=True)
class Range:
    """Steps `first` to `last`, both included; without a last one, to the end."""

    first: int = 1
    last: int | None = None


class Markers(BaseModel):
    """What happened on the way of a run; no more than 500 spikes and 500 notices."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    """Always `list`."""
    data: Sequence[Marker]
    """In the order of their steps."""


class Chart(BaseModel):
    """Points of a run, few enough to draw; no lowest or highest value is missing."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["chart"] = "chart"
    """Always `chart`."""
    columns: Mapping[str, Sequence[int | float | None]]
    """A list per measurement, all of the same length, in the order of the steps: `step`, `tokens`
    and `time` (tokens and seconds of training up to and with the step), and the `metrics` asked
    for; null where a value was not finite."""
    cursor: str
    """Send it as `Last-Event-ID` to the stream, which then goes on behind this answer; an event
    that was stored meanwhile may come twice. Empty before the first event."""


def version(db: Database, project_id: str, job_id: str) -> str:
    """Return a text that changes whenever the step metrics of a job do.

    Raises:
        NotFound: The project has no such job.
    """
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        fence, seq = event_queries.newest_cursor(session, job_id)
        # A resume from an earlier step leaves events behind without storing a new one.
        last = event_queries.last_metrics(session, job_id)
    return f"{fence}-{seq}-{last.step if last else 0}"


def chart(
    db: Database,
    project_id: str,
    job_id: str,
    steps: Range,
    *,
    max_points: int,
    names: Sequence[str] | None = None,
) -> Chart:
    """Return at most `max_points` points of a range of the current branch, at their true steps.

    Raises:
        InvalidInput: A name is none of CHART_METRICS.
        NotFound: The project has no such job.
    """
    chosen = (*_AXES, *_known(names, CHART_METRICS))
    found = curves.of_job(
        db,
        project_id,
        job_id,
        max_points=max_points,
        from_step=steps.first,
        to_step=steps.last,
    )
    places = _places(found.columns, max_points)
    lists = {name: getattr(found.columns, name) for name in chosen}
    columns = {name: [values[place] for place in places] for name, values in lists.items()}
    return Chart(columns=columns, cursor=found.cursor)


def markers(db: Database, project_id: str, job_id: str, steps: Range) -> Markers:
    """Return what happened in a range of the current branch, in the order of the steps."""
    found = curves.of_job(
        db, project_id, job_id, max_points=2, from_step=steps.first, to_step=steps.last
    )
    last = steps.last
    inside = [
        each
        for each in found.markers
        if each.step >= steps.first and (last is None or each.step <= last)
    ]
    return Markers(data=inside)


def chart_csv(found: Chart) -> Iterator[str]:
    """Yield the points of a chart as CSV, its header first; empty where one was not finite."""
    yield _line(found.columns)
    for values in zip(*found.columns.values(), strict=True):
        yield _line(values)


def csv(
    db: Database,
    project_id: str,
    job_id: str,
    steps: Range,
    *,
    limit: int | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[str]:
    """Return the steps of a range as lines of CSV, the header first; empty means not finite.

    The run is read in pieces, so that it may be a long one.

    Raises:
        InvalidInput: A name is none of CSV_METRICS.
        NotFound: The project has no such job.
    """
    chosen = ["step", *_known(names, CSV_METRICS)]
    with db.read() as session:
        jobs.require(session, project_id, job_id)
    return _csv(db, job_id, steps, limit, chosen)


def _csv(
    db: Database, job_id: str, steps: Range, limit: int | None, chosen: Sequence[str]
) -> Iterator[str]:
    yield _line(chosen)
    after, left = steps.first - 1, limit
    while left is None or left > 0:
        wanted = _ROWS if left is None else min(_ROWS, left)
        with db.read() as session:
            found = event_queries.metrics(
                session, job_id, after_step=after, limit=wanted, superseded=False
            )
        for each in found:
            if steps.last is not None and each.step > steps.last:
                return
            yield _line(getattr(each, name) for name in chosen)
        if len(found) < wanted:
            return
        after = found[-1].step
        left = None if left is None else left - len(found)


def _line(values: Iterator[object] | Sequence[object] | Mapping[str, object]) -> str:
    return ",".join("" if value is None else str(value) for value in values) + "\r\n"


def _known(names: Sequence[str] | None, known: Sequence[str]) -> Sequence[str]:
    if names is None:
        return known
    for name in names:
        if name not in known:
            message = f"metrics: there is no {shown(repr(name))}; {nearest(name, list(known))}"
            raise InvalidInput(message, param="metrics", code="unknown_metric")
    return list(dict.fromkeys(names))


def _places(columns: Columns, max_points: int) -> Sequence[int]:
    """Return the points to keep: a stretch has up to eleven, and fewer may be asked for."""
    count = len(columns.step)
    if count <= max_points:
        return range(count)
    wanted = [0, count - 1]
    for values in (columns.loss, columns.grad_norm, columns.tokens_per_second):
        wanted += sorted(extremes(values))
    return sorted(list(dict.fromkeys(wanted))[:max_points])
