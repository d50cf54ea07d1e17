"""The page that asks two models the same question: base, tuned, or any checkpoint."""

from collections.abc import Iterator
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
from app.services import catalog, checkpoints, jobs
from app.services.openai import models
from app.settings import Settings
from app.web import render
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_OFFERED_JOBS = 20
_Text = Annotated[str, Form(max_length=100_000)]
_Short = Annotated[str, Form(max_length=400)]


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


@router.get("/playground")
def playground_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    model: Annotated[str, Query(max_length=400)] = "",
    beside: Annotated[str, Query(max_length=400)] = "",
) -> Response:
    """Show two models side by side; the address says which."""
    return _page(request, db, config, project, {"model": model, "beside": beside}, [])


@router.post("/playground")
async def answer(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    model: _Short = "",
    beside: _Short = "",
    system: _Text = "",
    prompt: _Text = "",
    temperature: _Short = "",
    top_p: _Short = "",
    max_tokens: _Short = "",
    seed: _Short = "",
) -> Response:
    """Ask once, without a script; each model answers or says why not."""
    typed = {"system": system, "prompt": prompt, "temperature": temperature, "top_p": top_p}
    typed |= {"max_tokens": max_tokens, "seed": seed}
    said = [
        await _ask(request, db, config, project, name, typed) for name in (model, beside) if name
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
) -> Response:
    errors = [each.error for each in said if each.error is not None]
    return render.page(
        request,
        "playground.html",
        status=status_of(errors[0]) if errors else 200,
        active="playground",
        choices=list(_choices(db, config, project)),
        asked=asked,
        said=said,
        has_worker=any(worker.alive for worker in catalog.list_workers(db, config)),
    )


def _choices(db: Database, config: Settings, project: str) -> Iterator[Choice]:
    """Yield base models and finished jobs, then the checkpoints of the newest jobs."""
    for named in models.list_all(db, config, project).data:
        yield Choice(named.id, named.id)
    for job in jobs.page(db, config, project, state=None, after=None, limit=_OFFERED_JOBS):
        for each in checkpoints.of_job(db, project, job.id, superseded=False):
            yield Choice(f"{job.id}:{each.step}", f"{job.name or job.id}, step {each.step}")
