"""The settings of a job: every key with its value, defaults marked, beside another job's."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from app.api.deps import Config, Db, JobId, Project
from app.domain import differences
from app.domain.jobs import Job
from app.domain.spec import JobSpec
from app.services import jobs
from app.web import compare, new_job_form
from app.web.job import frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_OFFERED = 50


@dataclass(frozen=True)
class Row:
    """One key of a spec."""

    key: str
    value: str
    default: str | None
    """Text that it has where nothing is written; None for a key that every job has to give."""
    follows: str
    """What it follows from, where it is written nowhere and is not the plain default."""
    help: str

    @property
    def is_default(self) -> bool:
        return self.value == self.default


@router.get("/jobs/{job_id}/config")
def config_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    job_id: JobId,
    against: Annotated[str, Query(max_length=64, description="Another job.")] = "",
) -> HTMLResponse:
    """Show what runs, with every default filled in, and what differs from another job."""
    job = jobs.get(db, config, project, job_id)
    other = jobs.get(db, config, project, against) if against else None
    offered = jobs.page(db, config, project, state=None, after=None, limit=_OFFERED)
    return frame.page(
        request,
        job,
        "config",
        "job/config.html",
        groups=_groups(job),
        other=other,
        differences=_against(job, other) if other else [],
        offered=[each for each in offered if each.id != job.id],
    )


def _groups(job: Job) -> list[tuple[str, list[Row]]]:
    whole = job.spec.model_dump(mode="json")
    given = {"base_model": job.spec.base_model, "dataset": {"id": job.spec.dataset.id}}
    leading = {"preset": job.spec.preset, "adapter": job.spec.adapter}
    # What the same job has when nothing but its preset and its adapter is written.
    unwritten = JobSpec.model_validate({**given, **leading}).model_dump(mode="json")
    found: list[tuple[str, list[Row]]] = []
    for section in new_job_form.sections():
        rows: list[Row] = []
        for field in section.fields:
            group, _, key = field.path.rpartition(".")
            value = new_job_form.text_of(whole[group][key] if group else whole[key])
            default = plain = None if field.is_required else field.default
            if group and default is not None:
                default = new_job_form.text_of(unwritten[group][key])
            leader = "preset" if group == "lora" else "adapter"
            follows = "" if default == plain else f"{leader}: {leading[leader]}"
            rows.append(Row(field.path, value, default, follows, field.help))
        found.append((section.name, rows))
    return found


def _against(job: Job, other: Job) -> list[tuple[str, list[str | None]]]:
    found = differences.between([job.spec, other.spec])
    return [(each.key, [compare.text_of(value) for value in each.values]) for each in found]
