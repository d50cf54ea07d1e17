"""The stream that keeps the page of all jobs up to date: only what changed is sent."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.deps import Parts, Project
from app.services import catalog, job_table, storage
from app.web import watching
from app.web.jobs import LINES, JobsView, tab
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)


@router.get("/jobs/live", response_class=EventSourceResponse)
async def follow_jobs(
    request: Request,
    project: Project,
    view: JobsView,
    since: Annotated[str, Query(max_length=64)] = "",
    id: Annotated[list[str] | None, Query(max_length=LINES)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send lines, counts and workers whenever they look different; at first all of them."""
    parts: Parts = request.app.state.parts
    ids = id or []

    def news(told: watching.Told) -> list[ServerSentEvent]:
        db, settings = parts.db, parts.settings
        lines = job_table.lines(db, settings, project, ids)
        found = [
            event
            for each in lines
            for event in told.part(f"line-{each.job.id}", "jobs/one.html", each=each)
        ]
        there = {each.job.id for each in lines}
        found += [
            event for each in ids if each not in there for event in told.once("gone", id=each)
        ]
        kind, text = tab(job_table.counts(db, project))
        workers = catalog.list_workers(db, settings)
        newer = job_table.num_newer(db, project, view.filter, since)
        return [
            *found,
            *told.once("tab", kind=kind, text=text),
            *told.part(
                "workers", "jobs/workers.html", workers=workers, disk=storage.disk(settings)
            ),
            *told.part("news", "jobs/news.html", count=newer, query=view.query()),
        ]

    async for event in watching.follow(request, news):
        yield event
