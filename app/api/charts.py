"""Step metrics by HTTP: pages, charts of few points, CSV, and answers that did not change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from app.api.deps import MAX_INT32, Include
from app.api.errors import answers
from app.api.schemas import Page, page_of_steps
from app.db.engine import Database
from app.domain.errors import InvalidInput
from app.domain.metrics import StepMetrics
from app.services import charts, metrics
from app.services.charts import Chart, Range

_CSV = "text/csv"
_PAGE_STEPS = 1000

METRICS_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of steps; a chart with `max_points`; CSV for `Accept: text/csv`.",
        "content": {_CSV: {"schema": {"type": "string"}}},
    },
    304: {"description": "Nothing changed since the answer that `If-None-Match` names."},
    **answers(404),
}
MetricsAnswer = Page[StepMetrics] | Chart


def _range(
    from_step: Annotated[
        int, Query(ge=1, le=MAX_INT32, description="Only this step and later ones.")
    ] = 1,
    to_step: Annotated[
        int | None, Query(ge=1, le=MAX_INT32, description="Only this step and earlier ones.")
    ] = None,
) -> Range:
    if to_step is not None and from_step > to_step:
        raise InvalidInput(
            f"the steps are from {from_step} to {to_step}, which is nothing; from_step must not"
            " be above to_step",
            param="from_step",
            code="empty_range",
        )
    return Range(from_step, to_step)


Steps = Annotated[Range, Depends(_range)]


@dataclass(frozen=True)
class _Wanted:
    steps: Range
    limit: int | None
    max_points: int | None
    names: Sequence[str] | None
    superseded: bool
    is_csv: bool
    etag: str | None


def _wanted(
    request: Request,
    steps: Steps,
    after_step: Annotated[
        int, Query(ge=0, le=MAX_INT32, description="Only steps past this one.")
    ] = 0,
    limit: Annotated[
        int | None,
        Query(ge=1, le=10_000, description="Most steps of a page (1,000), or of CSV (all)."),
    ] = None,
    max_points: Annotated[
        int | None,
        Query(ge=2, le=10_000, description="Answer with a chart of so many points at the most."),
    ] = None,
    names: Annotated[
        str | None,
        Query(
            alias="metrics",
            description="Columns of a chart or of CSV, divided by commas; all when not given.",
        ),
    ] = None,
    include: Include = None,
    if_none_match: Annotated[
        str | None, Header(description="ETag of an answer that is there already.")
    ] = None,
) -> _Wanted:
    wanted = _Wanted(
        steps=Range(max(steps.first, after_step + 1), steps.last),
        limit=limit,
        max_points=max_points,
        names=None if names is None else [name.strip() for name in names.split(",")],
        superseded=include == "superseded",
        is_csv=_asks_for_csv(request.headers.get("accept", "")),
        etag=if_none_match,
    )
    _require_fitting(wanted)
    return wanted


WantedMetrics = Annotated[_Wanted, Depends(_wanted)]


def metrics_answer(db: Database, project_id: str, job_id: str, wanted: _Wanted) -> Response:
    """Answer with what is wanted, or with 304 when the caller has it."""
    kind = "csv" if wanted.is_csv else "json"
    etag = f'W/"{charts.version(db, project_id, job_id)}-{kind}"'
    headers = {"etag": etag, "vary": "Accept", "cache-control": "private, no-cache"}
    if wanted.etag is not None and _names(wanted.etag, etag):
        return Response(status_code=304, headers=headers)
    if wanted.max_points is not None:
        chart = charts.chart(
            db,
            project_id,
            job_id,
            wanted.steps,
            max_points=wanted.max_points,
            names=wanted.names,
        )
        return _csv(charts.chart_csv(chart), headers) if wanted.is_csv else _json(chart, headers)
    if wanted.is_csv:
        lines = charts.csv(
            db, project_id, job_id, wanted.steps, limit=wanted.limit, names=wanted.names
        )
        return _csv(lines, headers)
    return _json(_page(db, project_id, job_id, wanted), headers)


def _page(db: Database, project_id: str, job_id: str, wanted: _Wanted) -> Page[StepMetrics]:
    limit = wanted.limit or _PAGE_STEPS
    found = metrics.of_job(
        db,
        project_id,
        job_id,
        after_step=wanted.steps.first - 1,
        limit=limit + 1,
        superseded=wanted.superseded,
    )
    last = wanted.steps.last
    return page_of_steps([each for each in found if last is None or each.step <= last], limit)


def _json(answer: BaseModel, headers: dict[str, str]) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


def _csv(lines: Any, headers: dict[str, str]) -> Response:
    return StreamingResponse(lines, media_type=f"{_CSV}; charset=utf-8", headers=headers)


def _require_fitting(wanted: _Wanted) -> None:
    """Refuse what would be ignored.

    Raises:
        InvalidInput: One parameter does not go with another.
    """
    is_page = wanted.max_points is None and not wanted.is_csv
    if wanted.names is not None and is_page:
        message = "metrics chooses columns of a chart or of CSV; add max_points or Accept: text/csv"
        raise InvalidInput(message, param="metrics", code="conflicting_parameters")
    if wanted.superseded and not is_page:
        message = "include goes with pages alone; leave it out, or max_points and text/csv"
        raise InvalidInput(message, param="include", code="conflicting_parameters")
    if wanted.limit is not None and wanted.max_points is not None:
        message = "limit and max_points do not go together; give one of them"
        raise InvalidInput(message, param="limit", code="conflicting_parameters")


def _asks_for_csv(accept: str) -> bool:
    """Tell whether CSV is named, and not behind JSON."""
    weights = {"application/json": 0.0, _CSV: 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = (each.strip() for each in part.split(";"))
        if kind in weights:
            weights[kind] = _weight(parameters)
    return weights[_CSV] > weights["application/json"]


def _weight(parameters: Sequence[str]) -> float:
    given = [each.removeprefix("q=") for each in parameters if each.startswith("q=")]
    try:
        return float(given[0]) if given else 1.0
    except ValueError:
        return 0.0


def _names(given: str, etag: str) -> bool:
    tags = [each.strip().removeprefix("W/") for each in given.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
