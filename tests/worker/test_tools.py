"""A tool task always has an answer, whatever becomes of its process."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.domain import ids
from app.domain.datasets import DataFile
from app.domain.errors import Unavailable
from app.domain.options import DatasetSpec
from app.domain.tools import (
    REQUEST_FILE,
    RESULT_FILE,
    TOOL_REQUEST,
    TOOL_RESULT,
    PreviewRequest,
    ReplayResult,
    ToolFailure,
)
from app.domain.workers import Device
from tests.training_runs import DATASET_ID
from worker import tools
from worker.launcher import Launched


@dataclass
class FakeStream:
    """Remembers who was woken."""

    done: list[str] = field(default_factory=list)

    def tool_done(self, task_id: str) -> None:
        self.done.append(task_id)


class FakeLauncher:
    """Starts nothing: does `work` on the folder, and the tool has ended with a status, or not."""

    def __init__(self, work: Any = None, status: int | None = 0) -> None:
        self._work = work
        self._status = status

    def launch(self, entry: str, folder: Path, log: Path) -> Launched:
        if self._work is not None:
            self._work(folder)
        launched = Launched(pid=2**30, control_fd=-1)
        if self._status is not None:
            launched.finish(self._status)
        return launched


def refuse(_: Path) -> None:
    raise Unavailable("the fork server is gone")


def answer(folder: Path) -> None:
    request = TOOL_REQUEST.validate_json((folder / REQUEST_FILE).read_bytes())
    result = ReplayResult(
        steps=(), tensors_sha256="", notices=(request.device,), seconds=float(request.num_threads)
    )
    (folder / RESULT_FILE).write_text(result.model_dump_json())


def run_tool(home: Path, launcher: FakeLauncher) -> tuple[Any, list[str], str]:
    task_id = ids.new("tool")
    folder = home / "tools" / task_id
    folder.mkdir(parents=True)
    request = PreviewRequest(
        model_folder=home,
        dataset=DataFile(path=home / "rows.jsonl", sha256="0" * 64, format=None),
        options=DatasetSpec(id=DATASET_ID),
    )
    (folder / REQUEST_FILE).write_text(request.model_dump_json())
    stream = FakeStream()
    context: Any = SimpleNamespace(
        settings=SimpleNamespace(home=home, tool_seconds=0.1),
        stream=stream,
        launcher=launcher,
        devices=(Device(kind="cpu", index=0, name="cpu", memory_bytes=1),),
    )
    tools.run(context, task_id)
    return TOOL_RESULT.validate_json((folder / RESULT_FILE).read_bytes()), stream.done, task_id


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        (FakeLauncher(refuse), "the fork server is gone"),
        (FakeLauncher(status=-9), "ended with -9"),
    ],
)
def test_a_tool_that_dies_or_cannot_start_is_answered_with_a_failure(
    tmp_path: Path, launcher: FakeLauncher, message: str
):
    result, woken, task_id = run_tool(tmp_path, launcher)

    assert isinstance(result, ToolFailure)
    assert message in result.message
    assert woken == [task_id]


def test_a_tool_knows_its_workers_device_and_its_answer_is_kept(tmp_path: Path):
    result, woken, task_id = run_tool(tmp_path, FakeLauncher(answer))

    assert isinstance(result, ReplayResult)
    assert (result.notices, result.seconds >= 1) == (("cpu",), True)
    assert woken == [task_id]


@pytest.mark.parametrize("task_id", ["../../etc", "tool-1", f"tool-{'0' * 24}", f"job-{'0' * 24}"])
def test_a_message_that_names_no_request_does_nothing(tmp_path: Path, task_id: str):
    stream = FakeStream()
    context: Any = SimpleNamespace(settings=SimpleNamespace(home=tmp_path), stream=stream)

    tools.run(context, task_id)

    assert stream.done == []
    assert list(tmp_path.iterdir()) == []
