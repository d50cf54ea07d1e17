"""The stream that keeps the head of a job's pages up to date: only what changed is sent."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.deps import JobId, Parts, Project
from app.domain.errors import NotFound
from app.domain.jobs import OWNED_STATES, JobState
from app.web import watching
from app.web.job import overview
from app.web.job.overview import Facts
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_KINDS = {
    JobState.QUEUED: "waiting",
    JobState.PAUSED: "waiting",
    JobState.SUCCEEDED: "done",
    JobState.FAILED: "failed",
}


@router.get("/jobs/{job_id}/live", response_class=EventSourceResponse)
async def follow_job(
    request: Request, project: Project, job_id: JobId
) -> AsyncIterator[ServerSentEvent]:
    """Send the state, the facts and the actions of a job whenever they look different."""
    parts: Parts = request.app.state.parts

    def news(told: watching.Told) -> list[ServerSentEvent]:
        try:
            found = overview.facts(parts.db, parts.settings, project, job_id)
        except NotFound:
            return told.once("part", id="state", html="deleted")
        context = {"facts": found, "job": found.job, "blocked": found.blocked}
        kind, text = tab(found)
        return [
            *told.once("tab", kind=kind, text=text),
            *told.part("state", "job/state.html", **context),
            *told.part("facts", "job/facts.html", **context),
            *told.part("actions", "job/buttons.html", **context),
        ]

    async for event in watching.follow(request, news):
        yield event


def tab(found: Facts) -> tuple[str, str]:
    """Return what the tab of the browser says: kind of the mark, and text."""
    job = found.job
    kind = "running" if job.state in OWNED_STATES else _KINDS.get(job.state, "")
    if job.state is JobState.RUNNING and job.total_steps:
        return kind, f"{100 * job.step // job.total_steps} %"
    return kind, job.state
