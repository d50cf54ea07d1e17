"""Tool tasks from the user's side: ask a worker for something short, and wait for its answer."""

import shutil
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from app.db.engine import Database
from app.domain import ids
from app.domain.errors import InvalidInput, NoWorker, Unavailable
from app.domain.tools import REQUEST_FILE, RESULT_FILE, TOOL_RESULT, ToolFailure, ToolRequest
from app.services import catalog
from app.services.jobs import Outside
from app.settings import Settings

Result = TypeVar("Result", bound=BaseModel)

# Each call holds a thread of the API until a worker answers, and all requests share those threads.
_MAX_CALLS = 4
_calls = threading.BoundedSemaphore(_MAX_CALLS)
# A file on a shared disk may appear a moment after the message that tells of it.
_LATE_FILE_SECONDS = 2.0
_POLL_SECONDS = 0.1


@contextmanager
def place_for_a_call() -> Generator[None]:
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


def ask(
    db: Database,
    outside: Outside,
    request: ToolRequest,
    expected: type[Result],
    *,
    seconds: float | None = None,
) -> Result:
    """Let a worker do a task and return its answer; call it inside `place_for_a_call`.

    Args:
        expected: Kind of result that belongs to the request.
        seconds: Deadline; that of the settings when not given.

    Raises:
        NoWorker: No worker is running.
        InvalidInput: The task cannot be done with this input, whoever does it.
        Unavailable: The worker failed or took too long.
    """
    _require_worker(db, outside.settings)
    task_id = ids.new("tool")
    folder = outside.settings.home / "tools" / task_id
    folder.mkdir(parents=True, mode=0o700)
    try:
        deadline_seconds = seconds or outside.settings.tool_seconds
        timed = request.model_copy(update={"deadline_seconds": deadline_seconds})
        (folder / REQUEST_FILE).write_text(timed.model_dump_json())
        if not outside.doorbell.call_tool(task_id):
            raise Unavailable("the broker (Redis) is away; try again", code="broker_unavailable")
        return _answer(outside, task_id, folder / RESULT_FILE, expected, deadline_seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_worker(db: Database, settings: Settings) -> None:
    if not catalog.list_workers(db, settings):
        raise NoWorker(
            "no worker is running; start one with `lorad worker` (or everything with `lorad up`)"
        )


def _answer(
    outside: Outside, task_id: str, result_file: Path, expected: type[Result], seconds: float
) -> Result:
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
    if isinstance(result, expected):
        return result
    assert isinstance(result, ToolFailure), result
    if result.is_input_at_fault:
        raise InvalidInput(result.message, code=result.code, param=result.param)
    raise Unavailable(f"the worker could not do it: {result.message}", code=result.code)


def _no_answer(seconds: float, *, is_done: bool) -> Unavailable:
    if is_done:
        message = "the tool process ended without an answer; see the worker's log"
        return Unavailable(message, code="tool_failed")
    return Unavailable(
        f"no answer came within {seconds:.0f} s: the workers are busy with other tasks, or this one"
        " takes longer; ask for less, or raise LORAD_TOOL_SECONDS",
        code="tool_timeout",
    )
