"""Tool tasks from the user's side: ask a worker for something short, and wait for its answer."""

import shutil
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from app.db import checkpoints as checkpoint_queries
from app.db.engine import Database
from app.domain import ids
from app.domain.errors import InvalidInput, NotFound, NoWorker, Unavailable
from app.domain.rows import Message
from app.domain.spec import JobSpec
from app.domain.tools import (
    REQUEST_FILE,
    RESULT_FILE,
    TOOL_RESULT,
    GenerateRequest,
    GenerateResult,
)
from app.services import catalog, checkpoints, jobs
from app.services.jobs import Outside
from app.settings import Settings

BASE = "base"
_MAX_PROMPTS = 16
# Each call holds a thread of the API until a worker answers, and all requests share those threads.
_MAX_CALLS = 4
_calls = threading.BoundedSemaphore(_MAX_CALLS)
# A file on a shared disk may appear a moment after the message that tells of it.
_LATE_FILE_SECONDS = 2.0
_POLL_SECONDS = 0.1


class GenerateBody(BaseModel):
    """Conversations to continue with a job's adapter or with its base model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    messages: list[list[Message]] = Field(min_length=1, max_length=_MAX_PROMPTS)
    """Conversations; each ends with a user turn and gets one answer."""
    checkpoint: int | str = checkpoints.LATEST
    """A step, `latest`, the id of a checkpoint, `final`, or `base`: the model without adapter."""
    max_new_tokens: int = Field(default=64, ge=1, le=1024)
    """Longest answer in tokens."""


class Generation(BaseModel):
    """Answers of a model."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: str = "generation"
    """Always `generation`."""
    checkpoint: str
    """What answered: `base`, `final`, or `step N`."""
    answers: list[str]
    """One answer for each conversation, in their order."""
    seconds: float
    """Time the worker took in seconds."""


def generate(
    db: Database, outside: Outside, project_id: str, job_id: str, body: GenerateBody
) -> Generation:
    """Let a worker answer conversations, also while it trains.

    Raises:
        NotFound: No such job or checkpoint.
        CheckpointUnusable: The checkpoint does not verify.
        NoWorker: No worker is running.
        Unavailable: The worker failed or took too long, or enough others are being answered.
    """
    settings = outside.settings
    _require_user_turns(body.messages)
    with db.read() as session:
        spec = JobSpec.model_validate(jobs.require(session, project_id, job_id).spec)
    model = catalog.require_model(settings, spec.base_model)
    with _place_for_a_call():
        adapter, label = _adapter(db, settings, project_id, job_id, str(body.checkpoint))
        _require_worker(db, settings)
        request = GenerateRequest(
            model_folder=model.path,
            adapter_folder=adapter,
            prompts=tuple(tuple(prompt) for prompt in body.messages),
            max_new_tokens=body.max_new_tokens,
        )
        result = _ask(outside, request)
    return Generation(checkpoint=label, answers=list(result.answers), seconds=result.seconds)


def _require_user_turns(prompts: Sequence[Sequence[Message]]) -> None:
    """Refuse conversations that leave nothing to answer.

    Raises:
        InvalidInput: A conversation is empty or does not end with a user turn.
    """
    for index, prompt in enumerate(prompts):
        if not prompt or prompt[-1].role != "user":
            raise InvalidInput(
                "a conversation must end with a user turn", param=f"messages.{index}"
            )


@contextmanager
def _place_for_a_call() -> Generator[None]:
    """Hold one of the few places, so that slow answers leave threads for all other requests.

    Raises:
        Unavailable: All are taken.
    """
    if not _calls.acquire(blocking=False):
        raise Unavailable(
            f"{_MAX_CALLS} other calls are waiting for their answers; try again in a moment",
            code="tools_busy",
        )
    try:
        yield
    finally:
        _calls.release()


def _adapter(
    db: Database, settings: Settings, project_id: str, job_id: str, which: str
) -> tuple[Path | None, str]:
    if which == BASE:
        return None, BASE
    if which == checkpoints.FINAL:
        return checkpoints.adapter_folder(db, settings, project_id, job_id, which), which
    if which == checkpoints.LATEST:
        with db.read() as session:
            newest = checkpoint_queries.latest(session, job_id)
        if newest is None:
            raise NotFound(
                f"job {job_id} has no checkpoint yet; ask `base`, or wait for its first",
                param="checkpoint",
                code="no_checkpoint",
            )
    found = checkpoints.get(db, project_id, job_id, which)
    checkpoints.require_good(db, settings, found)
    return checkpoints.folder_of(settings, found), f"step {found.step}"


def _require_worker(db: Database, settings: Settings) -> None:
    if not catalog.list_workers(db, settings):
        raise NoWorker(
            "no worker is running; start one with `lorad worker` (or everything with `lorad up`)"
        )


def _ask(outside: Outside, request: GenerateRequest) -> GenerateResult:
    task_id = ids.new("tool")
    folder = outside.settings.home / "tools" / task_id
    folder.mkdir(parents=True, mode=0o700)
    try:
        (folder / REQUEST_FILE).write_text(request.model_dump_json())
        if not outside.doorbell.call_tool(task_id):
            raise Unavailable("the broker (Redis) is away; try again", code="broker_unavailable")
        return _answer(outside, task_id, folder / RESULT_FILE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answer(outside: Outside, task_id: str, result_file: Path) -> GenerateResult:
    seconds = outside.settings.tool_seconds
    deadline = time.monotonic() + seconds
    is_done = outside.stream.wait_for_tool(task_id, seconds=seconds)
    if is_done:
        deadline = time.monotonic() + _LATE_FILE_SECONDS
    # When Redis went away meanwhile, the file still comes.
    while not result_file.is_file():
        if time.monotonic() > deadline:
            raise _no_answer(seconds, is_done=is_done)
        time.sleep(_POLL_SECONDS)
    result = TOOL_RESULT.validate_json(result_file.read_bytes())
    if isinstance(result, GenerateResult):
        return result
    raise Unavailable(f"the worker could not do it: {result.message}", code=result.code)


def _no_answer(seconds: float, *, is_done: bool) -> Unavailable:
    if is_done:
        message = "the tool process ended without an answer; see the worker's log"
        return Unavailable(message, code="tool_failed")
    return Unavailable(f"no worker answered within {seconds:.0f} s", code="tool_timeout")
