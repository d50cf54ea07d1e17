"""The process of a short task leaves a result, whatever it was asked."""

import os
from pathlib import Path

from app.domain.datasets import DataFile
from app.domain.options import DatasetSpec
from app.domain.tools import (
    REQUEST_FILE,
    RESULT_FILE,
    TOOL_RESULT,
    PreviewRequest,
    PreviewResult,
    ToolFailure,
    ToolResult,
)
from tests.training_runs import DATASET_ID
from worker import tool_process

_KEPT_OPEN: list[int] = []


def preview(folder: Path, model_folder: Path) -> ToolResult:
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "hello"}\n')
    request = PreviewRequest(
        model_folder=model_folder,
        dataset=DataFile(path=rows, sha256="0" * 64, format=None),
        options=DatasetSpec(id=DATASET_ID),
    )
    (folder / REQUEST_FILE).write_text(request.model_dump_json())
    return do(folder)


def do(folder: Path) -> ToolResult:
    reader, writer = os.pipe()
    _KEPT_OPEN.append(writer)  # its end would end this process
    exit_code = tool_process.main(folder, reader)
    result = TOOL_RESULT.validate_json((folder / RESULT_FILE).read_bytes())
    assert exit_code == (1 if isinstance(result, ToolFailure) else 0)
    return result


def test_a_task_leaves_its_result(tmp_path: Path, tiny_llama: Path):
    result = preview(tmp_path, tiny_llama)

    assert isinstance(result, PreviewResult)
    assert [row.text for row in result.rows] == ["hello"]


def test_a_missing_model_is_a_failure_with_a_message(tmp_path: Path):
    result = preview(tmp_path, tmp_path / "nowhere")

    assert isinstance(result, ToolFailure)
    assert result.code == "invalid_model"
    assert "nowhere" in result.message


def test_a_request_that_is_none_is_a_failure(tmp_path: Path):
    (tmp_path / REQUEST_FILE).write_text("{}")

    assert do(tmp_path).kind == "failed"
