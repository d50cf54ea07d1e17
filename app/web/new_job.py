"""The page that makes a job: a form, its plan beside it, and the same as JSON and command."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import RedirectResponse

from app.api.deps import Config, Db, Project, Reach
from app.api.errors import status_of
from app.api.strict import require_known
from app.domain.errors import InvalidInput, LoradError
from app.domain.groups import printable
from app.domain.plans import Plan
from app.domain.spec import JobSpec
from app.services import catalog, datasets, jobs, plans
from app.web import new_job_form, render, token_preview
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_OFFERED = 50
_OWN_FIELDS = ["file", "key"]


@dataclass
class Draft:
    """A job that is being written: what was typed, what is wrong with it, what it would do."""

    texts: dict[str, str]
    problems: dict[str, str] = field(default_factory=dict[str, str])
    given: dict[str, Any] = field(default_factory=dict[str, Any])
    spec: JobSpec | None = None
    plan: Plan | None = None
    status: int = 200

    def check(self) -> None:
        try:
            self.given = new_job_form.given(self.texts)
        except InvalidInput as error:
            self.refuse(error)
            return
        self.spec, self.problems = new_job_form.spec_of(self.given)
        self.status = 422 if self.problems else 200

    def refuse(self, error: LoradError) -> None:
        known = {each.path for each in new_job_form.fields()}
        param = error.param or ""
        self.problems = {**self.problems, param if param in known else "": error.message}
        self.status = status_of(error)


async def _typed(request: Request) -> dict[str, str]:
    form = await request.form()  # read already: this is what the endpoint gets
    known = [each.path for each in new_job_form.fields()]
    require_known([name for name, _ in form.multi_items()], [*known, *_OWN_FIELDS], what="field")
    return {name: text for name in known if isinstance(text := form.get(name), str) and text}


Typed = Annotated[dict[str, str], Depends(_typed)]
Key = Annotated[str, Form(max_length=100)]


@router.get("/new")
def new_job_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    source: Annotated[str, Query(alias="from", max_length=64)] = "",
    preset: Annotated[str, Query(max_length=64)] = "",
    dataset: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Show the form, empty or filled in like a job that there is."""
    texts = {}
    if source:
        texts = new_job_form.texts_of(jobs.get(db, config, project, source).spec)
    asked = {"preset": preset, "dataset.id": dataset}
    texts |= {name: text for name, text in asked.items() if text}
    return _page(request, db, config, project, Draft(texts), source=source)


@router.post("/new")
def submit_job(
    request: Request,
    db: Db,
    config: Config,
    reach: Reach,
    project: Project,
    typed: Typed,
    file: Annotated[UploadFile | str | None, File()] = None,
    key: Key = "",
) -> Response:
    """Store the file, if there is one, then the job; what is wrong is told at its field."""
    draft = _draft(db, config, project, typed, file, key)
    if draft.spec is not None:
        try:
            job = jobs.submit(db, reach, project, draft.spec, idempotency_key=key or None)
            return RedirectResponse(f"/ui/jobs/{job.id}", status_code=303)
        except LoradError as error:
            draft.refuse(error)
    return _page(request, db, config, project, draft)


@router.post("/new/plan")
def plan_job(
    request: Request,
    db: Db,
    config: Config,
    reach: Reach,
    project: Project,
    typed: Typed,
    file: Annotated[UploadFile | str | None, File()] = None,
    key: Key = "",
) -> Response:
    """Say what the job would do and need, without storing it. A script gets that part alone."""
    draft = _draft(db, config, project, typed, file, key)
    if draft.spec is not None:
        try:
            draft.plan = plans.plan(db, reach, project, draft.spec)
        except LoradError as error:
            draft.refuse(error)
    if "hx-request" in request.headers:
        return render.page(request, "new/plan.html", **_shown(draft))
    return _page(request, db, config, project, draft)


def _draft(
    db: Db,
    config: Config,
    project: str,
    typed: dict[str, str],
    file: UploadFile | str | None,
    key: str,
) -> Draft:
    """Return what was typed, checked; a file that came with it is stored and chosen first."""
    draft = Draft(typed)
    # A file field that was left empty comes as an empty text, or as a file without a name.
    if file and not isinstance(file, str) and file.filename:
        try:
            typed["dataset.id"] = _upload(db, config, project, file, key)
        except LoradError as error:
            draft.problems = {"dataset.id": error.message}
            draft.status = status_of(error)
            return draft
    draft.check()
    return draft


def _upload(db: Db, config: Config, project: str, file: UploadFile, key: str) -> str:
    filename = PurePath(printable(file.filename or "")).name[:255] or "data.jsonl"
    stored = datasets.upload(
        db,
        config,
        project,
        file.file,
        name=filename[:200],
        filename=filename,
        idempotency_key=f"{key}-data" if key else None,
    )
    return stored.id


def _page(
    request: Request, db: Db, config: Config, project: str, draft: Draft, *, source: str = ""
) -> Response:
    return render.page(
        request,
        "new/new.html",
        status=draft.status,
        active="new",
        sections=new_job_form.sections(),
        first=new_job_form.FIRST,
        models=catalog.list_models(config),
        models_folder=config.models_folder,
        datasets=datasets.page(db, project, after=None, limit=_OFFERED),
        # A new one each time: a form that was refused and mended is another job.
        key=secrets.token_urlsafe(16),
        source=source,
        **_shown(draft),
    )


def _shown(draft: Draft) -> Mapping[str, Any]:
    text = json.dumps(draft.given, indent=2, ensure_ascii=False)
    return {
        "place": token_preview.place(draft.spec) if draft.spec else "",
        "draft": draft,
        "problems": draft.problems,
        "spec_json": text,
        # The mark is no line of the JSON: within a text of it, a line break is written as \n.
        "command": f"lorad submit - <<'JOB'\n{text}\nJOB",
    }
