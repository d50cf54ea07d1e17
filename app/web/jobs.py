"""The page of all jobs: what runs, how far it is, and the machines it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse

from app.api.deps import Config, Db, JobAfter, Project
from app.domain.jobs import OWNED_STATES, JobState
from app.services import catalog, job_table, storage
from app.services.job_table import Filter, Sort
from app.web import render
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

LINES = 50
SORTS = {
    "newest": "newest",
    "priority": "priority",
    "loss": "lowest loss",
    "best_eval_loss": "lowest eval loss",
}


@dataclass(frozen=True)
class View:
    """What the address of the page says."""

    state: JobState | None
    text: str
    model: str
    sort: Sort

    @property
    def filter(self) -> Filter:
        states = None if self.state is None else [self.state]
        return Filter(states, self.text or None, self.model or None)

    @property
    def is_filtered(self) -> bool:
        return bool(self.state or self.text or self.model)

    def query(self, **more: str) -> str:
        """Return the part of an address that says this view, with more in it."""
        own = {"state": self.state or "", "q": self.text, "model": self.model}
        own |= {"sort": "" if self.sort == "newest" else self.sort} | more
        return urlencode({name: value for name, value in own.items() if value})


def _view(
    state: Annotated[JobState | Literal[""], Query(description="One state.")] = "",
    q: Annotated[str, Query(max_length=200, description="Part of a name, id or model.")] = "",
    model: Annotated[str, Query(max_length=200, description="Exactly this base model.")] = "",
    sort: Annotated[Sort, Query(description="Order of the lines.")] = "newest",
) -> View:
    # A form sends what is left open as an empty text.
    return View(JobState(state) if state else None, q.strip(), model, sort)


JobsView = Annotated[View, Depends(_view)]


@router.get("/jobs")
def jobs_page(
    request: Request, db: Db, config: Config, project: Project, view: JobsView, after: JobAfter
) -> HTMLResponse:
    """Show a page of jobs, and the machines that run them."""
    table = job_table.page(db, config, project, view.filter, view.sort, after=after, limit=LINES)
    ids = [line.job.id for line in table.lines]
    return render.page(
        request,
        "jobs.html",
        active="jobs",
        view=view,
        table=table,
        sorts=SORTS,
        states=list(JobState),
        is_first=after is None,
        num_all=sum(table.counts.values()),
        more=view.query(after=ids[-1]) if table.has_more else None,
        live=view.query(since=table.newest or "") + "".join(f"&id={job_id}" for job_id in ids),
        workers=catalog.list_workers(db, config),
        disk=storage.disk(config),
        home=config.home,
    )


def tab(counts: Mapping[JobState, int]) -> tuple[str, str]:
    """Return what the tab of the browser says: kind of the mark, and text."""
    running = sum(counts.get(state, 0) for state in OWNED_STATES)
    failed, queued = counts.get(JobState.FAILED, 0), counts.get(JobState.QUEUED, 0)
    said = [f"{running} running"] if running else []
    said += [f"{queued} queued"] if queued else []
    said += [f"{failed} failed"] if failed else []
    kind = "running" if running else "waiting" if queued else "failed" if failed else ""
    return kind, ", ".join(said)
