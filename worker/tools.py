"""Tool tasks: short work on a model, forked, with a deadline, never behind a training job."""

import logging
from pathlib import Path

from app.domain import ids
from app.domain.errors import Unavailable
from app.domain.tools import REQUEST_FILE, RESULT_FILE, TOOL_REQUEST, ToolFailure, ToolRequest
from worker import devices
from worker.context import WorkerContext

_log = logging.getLogger(__name__)

LOG_FILE = "tool.log"


def run(context: WorkerContext, task_id: str) -> None:
    """Run the task whose request lies under `task_id`, and wake whoever waits for the answer.

    A message is no proof of anything, so an id that is none, or names no request, is ignored. There
    is an answer in every other case, also when the process dies or takes too long.
    """
    folder = context.settings.home / "tools" / task_id
    if not ids.is_id(task_id, "tool") or not (folder / REQUEST_FILE).is_file():
        _log.warning("there is no tool task %r", task_id[:60])
        return
    try:
        request = _adapt(context, folder / REQUEST_FILE)
        problem = _work(context, folder, request.deadline_seconds)
    except (Unavailable, OSError, ValueError) as error:
        problem = str(error)
    # Whoever asked may have given up and removed the folder.
    if problem is not None and folder.is_dir() and not (folder / RESULT_FILE).exists():
        _log.error("tool task %s: %s", task_id, problem)
        failure = ToolFailure(code="tool_failed", message=problem)
        (folder / RESULT_FILE).write_text(failure.model_dump_json())
    context.stream.tool_done(task_id)


def _adapt(context: WorkerContext, request_file: Path) -> ToolRequest:
    """Fill in what only the worker knows: its device and its threads."""
    request = TOOL_REQUEST.validate_json(request_file.read_bytes())
    own = {"device": context.devices[0].kind, "num_threads": devices.threads_per_slot(1)}
    adapted = request.model_copy(update=own)
    request_file.write_text(adapted.model_dump_json())
    return adapted


def _work(context: WorkerContext, folder: Path, deadline_seconds: float | None) -> str | None:
    """Let a process do the task; returns what went wrong when there is no result."""
    tool = context.launcher.launch("tool", folder, folder / LOG_FILE)
    seconds = deadline_seconds or context.settings.tool_seconds
    try:
        has_ended = tool.ended.wait(seconds)
    finally:
        tool.kill()
        tool.close()
    if (folder / RESULT_FILE).is_file():
        return None
    if not has_ended:
        return f"it took longer than {seconds:.0f} s"
    return f"its process ended with {tool.exit_status} and no result"
