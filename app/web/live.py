"""The stream that keeps the page of all jobs up to date: only what changed is sent."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.deps import Parts, Project
from app.domain.errors import Unavailable
from app.services import catalog, job_table, storage
from app.web import render
from app.web.jobs import LINES, JobsView, View, tab
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_SECONDS = 1.0


@router.get("/jobs/live", response_class=EventSourceResponse)
async def follow_jobs(
    request: Request,
    project: Project,
    view: JobsView,
    since: Annotated[str, Query(max_length=64)] = "",
    id: Annotated[list[str] | None, Query(max_length=LINES)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send lines, counts and workers whenever they look different; at first all of them."""
    watch = _Watch(request.app.state.parts, project, view, id or [], since)
    closing: asyncio.Event = request.app.state.closing
    yield ServerSentEvent(comment="connected")
    while not closing.is_set():
        try:
            news = await to_thread.run_sync(watch.news)
        except Unavailable:
            return  # the page says that it tries again
        for event in news:
            yield event
        if not news:
            yield ServerSentEvent(comment="alive")  # so that a browser that left is noticed
        try:
            await asyncio.wait_for(closing.wait(), timeout=_SECONDS)
        except TimeoutError:
            continue


class _Watch:
    """What one browser was told."""

    def __init__(self, parts: Parts, project: str, view: View, ids: list[str], since: str) -> None:
        self._parts = parts
        self._project = project
        self._view = view
        self._ids = ids
        self._since = since
        self._told: dict[str, bytes] = {}

    def news(self) -> list[ServerSentEvent]:
        db, settings = self._parts.db, self._parts.settings
        lines = job_table.lines(db, settings, self._project, self._ids)
        found = [
            self._told_once("line", each.job.id, html=render.fragment("jobs/one.html", each=each))
            for each in lines
        ]
        there = {each.job.id for each in lines}
        found += [self._told_once("gone", each) for each in self._ids if each not in there]
        kind, text = tab(job_table.counts(db, self._project))
        found.append(self._told_once("counts", "", kind=kind, text=text))
        html = render.fragment(
            "jobs/workers.html",
            workers=catalog.list_workers(db, settings),
            disk=storage.disk(settings),
        )
        found.append(self._told_once("workers", "", html=html))
        newer = job_table.num_newer(db, self._project, self._view.filter, self._since)
        found.append(self._told_once("news", "", count=newer))
        return [each for each in found if each is not None]

    def _told_once(self, event: str, about: str, **data: object) -> ServerSentEvent | None:
        """Return what to say of something, or None when that was said last."""
        digest = hashlib.sha256(repr(data).encode("utf-8", "backslashreplace")).digest()
        key = f"{event} {about}"
        if self._told.get(key) == digest:
            return None
        self._told[key] = digest
        return ServerSentEvent(event=event, data={"id": about, **data})
