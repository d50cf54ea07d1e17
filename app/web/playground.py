"""The page that asks two models the same question: base, tuned, or any checkpoint."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import ValidationError

from app.api.deps import Config, Db, Project
from app.api.errors import problem_of, status_of
from app.api.v1.chat import ChatBody, create_chat_completion
from app.api.v1.shapes import ChatCompletion
from app.db.engine import Database
from app.domain.errors import InvalidInput, LoradError
from app.domain.jobs import Job
from app.services import catalog, checkpoints, job_table, jobs
from app.services.job_table import Filter
from app.services.openai import models
from app.settings import Settings
from app.web import render
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_OFFERED_JOBS = 20
# Checked when it is asked, not before: what was typed stays when it is refused.
_LONGEST = {"system": 100_000, "prompt": 100_000}
_LONGEST_OTHER = 400
_Text = Annotated[str, Form()]


@dataclass(frozen=True)
class Choice:
    """A model that can be asked."""

    id: str
    label: str


@dataclass(frozen=True)
class Said:
    """What a model answered, or why it did not."""

    model: str
    text: str = ""
    reason: str | None = None
    error: LoradError | None = None


@dataclass(frozen=True)
class Found:
    """What a search for a job came to."""

    text: str
    job: Job | None
    """The job, when it is the only one."""
    others: Sequence[Job]
    """Some that fit, when there are several."""
    choices: Sequence[Choice]
    """Checkpoints of the job, the newest first."""


@router.get("/playground")
def playground_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    model: Annotated[str, Query(max_length=400)] = "",
    beside: Annotated[str, Query(max_length=400)] = "",
    job: Annotated[str, Query(max_length=200, description="A job, or what to find it by.")] = "",
) -> Response:
    """Show two models side by side; the address says which, or names the job they are of."""
    found = _find(db, config, project, job.strip()) if job.strip() else None
    asked = {"model": model, "beside": beside}
    if found is not None and found.job is not None:
        asked["model"] = model or found.job.spec.base_model
        asked["beside"] = beside or (found.choices[0].id if found.choices else "")
    return _page(request, db, config, project, asked, [], found)


@router.post("/playground")
async def answer(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    model: _Text = "",
    beside: _Text = "",
    system: _Text = "",
    prompt: _Text = "",
    temperature: _Text = "",
    top_p: _Text = "",
    max_tokens: _Text = "",
    seed: _Text = "",
) -> Response:
    """Ask once, without a script; each model answers or says why not."""
    typed = {"system": system, "prompt": prompt, "temperature": temperature, "top_p": top_p}
    typed |= {"max_tokens": max_tokens, "seed": seed}
    said = [
        await _ask(request, db, config, project, name, typed)
        for name in ([each for each in (model, beside) if each] or [""])
    ]
    asked = {**typed, "model": model, "beside": beside}
    return await to_thread.run_sync(_page, request, db, config, project, asked, said)


async def _ask(
    request: Request, db: Db, config: Config, project: str, model: str, typed: dict[str, str]
) -> Said:
    try:
        body = _body(model, typed)
        found = await create_chat_completion(body, request, db, config, project)
    except LoradError as error:
        return Said(model, error=error)
    assert isinstance(found, ChatCompletion)  # nothing was asked to be streamed
    first = found.choices[0]
    return Said(model, first.message.content or "", first.finish_reason)


def _body(model: str, typed: dict[str, str]) -> ChatBody:
    """Return the request that the fields of the form say.

    Raises:
        InvalidInput: A field holds no value that it can have.
    """
    if not model:
        raise InvalidInput("no model is chosen; choose one", param="model", code="no_model")
    for name, text in {"model": model, **typed}.items():
        longest = _LONGEST.get(name, _LONGEST_OTHER)
        if len(text) > longest:
            message = f"{name} has {len(text):,} characters; at most {longest:,} are taken"
            raise InvalidInput(message, param=name, code="too_long")
    turns = [("system", typed["system"]), ("user", typed["prompt"])]
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": text} for role, text in turns if text.strip()],
    }
    for name, read in (
        ("temperature", float),
        ("top_p", float),
        ("max_tokens", int),
        ("seed", int),
    ):
        text = typed[name].strip()
        try:
            body |= {name: read(text)} if text else {}
        except ValueError:
            body[name] = text  # refused by name, as from any client
    try:
        return ChatBody.model_validate(body)
    except ValidationError as error:
        found = problem_of(dict(error.errors()[0]))
        raise InvalidInput(found.message, param=found.param, code=found.code) from error


def _page(
    request: Request,
    db: Database,
    config: Settings,
    project: str,
    asked: dict[str, str],
    said: list[Said],
    found: Found | None = None,
) -> Response:
    errors = [each.error for each in said if each.error is not None]
    return render.page(
        request,
        "playground.html",
        status=status_of(errors[0]) if errors else 200,
        active="playground",
        choices=list(_choices(db, config, project, found)),
        found=found,
        asked=asked,
        said=said,
        has_worker=any(worker.alive for worker in catalog.list_workers(db, config)),
    )


def _find(db: Database, config: Settings, project: str, text: str) -> Found:
    """Look for jobs by id, name or base model; an id, or the only one found, is the job."""
    lines = job_table.lines(db, config, project, [text])
    if not lines:
        table = job_table.page(
            db, config, project, Filter(text=text), "newest", after=None, limit=_OFFERED_JOBS
        )
        lines = table.lines
    if len(lines) != 1:
        return Found(text, None, [line.job for line in lines], [])
    return Found(text, lines[0].job, [], list(_checkpoints(db, project, lines[0].job)))


def _checkpoints(db: Database, project: str, job: Job) -> Iterator[Choice]:
    """Yield the checkpoints of a job, the newest first."""
    for each in reversed(checkpoints.of_job(db, project, job.id, superseded=False)):
        yield Choice(f"{job.id}:{each.step}", f"{job.name or job.id}, step {each.step}")


def _choices(db: Database, config: Settings, project: str, found: Found | None) -> Iterator[Choice]:
    """Yield base models and finished jobs, then checkpoints: of a job that was found, and new."""
    for named in models.list_all(db, config, project).data:
        yield Choice(named.id, named.id)
    own = found.job if found is not None else None
    if found is not None:
        yield from found.choices
    for job in jobs.page(db, config, project, state=None, after=None, limit=_OFFERED_JOBS):
        if own is None or job.id != own.id:
            yield from _checkpoints(db, project, job)
