"""Tool tasks: short work on a model, forked, with a deadline, never behind a training job."""

import logging

from app.domain import ids
from app.domain.errors import Unavailable
from worker.context import WorkerContext

_log = logging.getLogger(__name__)

LOG_FILE = "tool.log"


def run(context: WorkerContext, task_id: str) -> None:
    """Run the task whose request lies under `task_id`, and wake whoever waits for the answer.

    A message is no proof of anything, so an id that is none, or names no request, is ignored.
    """
    folder = context.settings.home / "tools" / task_id
    if not ids.is_id(task_id, "tool") or not (folder / "request.json").is_file():
        _log.warning("there is no tool task %r", task_id[:60])
        return
    try:
        tool = context.launcher.launch("tool", folder, folder / LOG_FILE)
    except Unavailable as error:
        _log.error("tool task %s: %s", task_id, error)
        return
    try:
        if not tool.ended.wait(context.settings.tool_seconds):
            _log.warning("tool task %s took longer than its deadline", task_id)
    finally:
        tool.kill()
        tool.close()
    context.stream.tool_done(task_id)
