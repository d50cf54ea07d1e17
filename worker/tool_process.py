"""Entry of the process that does one short task, told what to do by a file and a pipe."""

import argparse
import os
import sys
import traceback
from pathlib import Path

from app.domain.errors import InvalidInput, LoradError, TrainingError
from app.domain.tools import (
    REQUEST_FILE,
    RESULT_FILE,
    TOOL_REQUEST,
    ExportRequest,
    PlanRequest,
    PreviewRequest,
    ReplayRequest,
    ToolFailure,
    ToolRequest,
    ToolResult,
)
from worker.trainer import Control, preload


def main(task_folder: Path, control_fd: int) -> int:
    """Do the task in `task_folder`/request.json and leave result.json beside it.

    Returns:
        Exit code: 0 done, 1 not done (result.json says why), 2 no result could be written.
    """
    Control(control_fd).watch()
    try:
        result = _result(task_folder)
        _write(task_folder / RESULT_FILE, result)
    except Exception:  # noqa: BLE001 - the edge of the process
        traceback.print_exc()
        return 2
    return 1 if isinstance(result, ToolFailure) else 0


def _result(task_folder: Path) -> ToolResult:
    try:
        request = TOOL_REQUEST.validate_json((task_folder / REQUEST_FILE).read_bytes())
        preload()
        return _do(request, task_folder)
    except LoradError as error:
        return ToolFailure(
            code=error.code,
            message=error.message,
            is_input_at_fault=isinstance(error, InvalidInput | TrainingError),
            param=error.param,
        )
    except Exception as error:  # noqa: BLE001 - the edge: an answer for the asker, a traceback here
        traceback.print_exc()
        return ToolFailure(code="internal", message=f"{type(error).__name__}: {error}")


def _do(request: ToolRequest, task_folder: Path) -> ToolResult:
    match request:
        case ExportRequest():
            from worker.training.export.produce import produce

            os.nice(10)  # it takes minutes, and training beside it comes first
            return produce(request, task_folder)
        case PlanRequest():
            from worker.training.planning import plan

            return plan(request, task_folder)
        case PreviewRequest():
            from worker.training.preview import preview

            return preview(request)
        case ReplayRequest():
            from worker.training.replay import replay

            return replay(request, task_folder)


def _write(path: Path, result: ToolResult) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(result.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worker.tool_process", description=__doc__)
    parser.add_argument("task_folder", type=Path)
    parser.add_argument("--control-fd", type=int, required=True)
    given = parser.parse_args()
    sys.exit(main(given.task_folder, given.control_fd))
