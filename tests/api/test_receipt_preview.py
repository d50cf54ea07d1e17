"""The receipt of a job and previews of a data set, through the API."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.events import ReceiptEvent
from app.domain.jobs import JobState
from app.domain.previews import PreviewRow
from app.domain.receipts import LineFate, LineProblem, Receipt
from app.domain.runs import FATES_FILE, attempt_folder
from app.domain.tools import REQUEST_FILE, RESULT_FILE, PreviewRequest, PreviewResult, ToolFailure
from app.services import recording
from tests.api.answers import refusal
from tests.services.driver import ROW as STORED
from tests.services.driver import Driver, FakeDoorbell, FakeStream

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

S = JobState
PROBLEM = LineProblem(line=2, fate="dropped", reason="bad_json", detail="not valid JSON")
RECEIPT = Receipt(
    num_lines=3,
    num_kept=2,
    num_truncated=0,
    num_dropped=1,
    dropped_reasons={"bad_json": 1},
    num_train_rows=1,
    num_eval_rows=1,
    num_units=1,
    num_tokens=7,
    num_target_tokens=3,
    num_tokens_cut=0,
    longest_tokens=7,
    num_turns_without_end=0,
    problems=(PROBLEM,),
)
ROW = PreviewRow(
    line=1,
    text="xy",
    tokens=(),
    num_tokens=0,
    num_targets=0,
    num_tokens_cut=0,
    is_truncated=False,
    ends_turn=None,
    problem=None,
)


def write_receipt(driver: Driver) -> str:
    """Let a trainer report its receipt."""
    job_id, run = driver.in_state(S.RUNNING)
    event = ReceiptEvent(seq=1000, at=datetime.now(UTC), step=0, receipt=RECEIPT)
    recording.record(driver.db, run, [event])
    folder = attempt_folder(driver.settings.home, job_id, run.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    fates = [
        LineFate(line=1, fate="kept", num_tokens=7, num_target_tokens=3),
        LineFate(line=2, fate="dropped", reason="bad_json"),
        LineFate(line=3, fate="kept", held_out=True),
    ]
    lines = [fate.model_dump_json(exclude_defaults=True) + "\n" for fate in fates]
    (folder / FATES_FILE).write_text("".join(lines))
    return job_id


def test_the_receipt_is_shown_as_the_trainer_wrote_it(client: TestClient, driver: Driver):
    job_id = write_receipt(driver)

    answer = client.get(f"/jobs/{job_id}/receipt")

    assert answer.status_code == 200
    assert Receipt.model_validate(answer.json()) == RECEIPT


def test_every_line_of_a_receipt_can_be_downloaded(client: TestClient, driver: Driver):
    job_id = write_receipt(driver)

    answer = client.get(f"/jobs/{job_id}/receipt/lines")

    assert answer.headers["content-type"].startswith("application/jsonl")
    assert f'filename="{job_id}-receipt.jsonl"' in answer.headers["content-disposition"]
    fates = [LineFate.model_validate_json(line) for line in answer.text.splitlines()]
    assert [(fate.line, fate.fate, fate.held_out) for fate in fates] == [
        (1, "kept", False),
        (2, "dropped", False),
        (3, "kept", True),
    ]


@pytest.mark.parametrize("path", ["receipt", "receipt/lines"])
def test_a_job_that_read_no_data_yet_has_no_receipt(client: TestClient, driver: Driver, path: str):
    job_id, _ = driver.in_state(S.RUNNING)

    error = refusal(client.get(f"/jobs/{job_id}/{path}"), 404)

    assert error["code"] == "not_measured_yet"
    assert refusal(client.get(f"/jobs/job-{'0' * 24}/{path}"), 404)["code"] == "not_found"


class Answering(FakeDoorbell):
    """Does a tool's work on the spot."""

    def __init__(self, home: Any, result: PreviewResult | ToolFailure) -> None:
        super().__init__()
        self._home = home
        self._result = result
        self.requests: list[PreviewRequest] = []

    def call_tool(self, task_id: str) -> bool:
        folder = self._home / "tools" / task_id
        written = (folder / REQUEST_FILE).read_bytes()
        self.requests.append(PreviewRequest.model_validate_json(written))
        (folder / RESULT_FILE).write_text(self._result.model_dump_json())
        return True


class Done(FakeStream):
    def wait_for_tool(self, task_id: str, *, seconds: float) -> bool:
        return True


Answer = Callable[[PreviewResult | ToolFailure], tuple[TestClient, Answering]]


@pytest.fixture
def answering(make_client: Callable[..., TestClient], driver: Driver) -> Answer:
    """Return a function that starts an API whose tools give a result."""
    driver.in_state(S.RUNNING)  # so that a worker is there

    def start(result: PreviewResult | ToolFailure) -> tuple[TestClient, Answering]:
        client = make_client()
        parts: Any = client.app.state.parts  # type: ignore[attr-defined]
        doorbell = Answering(parts.settings.home, result)
        outside = replace(parts.outside, doorbell=doorbell, stream=Done())
        client.app.state.parts = replace(parts, outside=outside)  # type: ignore[attr-defined]
        return client, doorbell

    return start


def test_a_preview_is_what_the_tool_answered_to_exactly_what_was_asked(
    answering: Answer, driver: Driver
):
    client, doorbell = answering(PreviewResult(rows=(ROW,), has_more=True))
    options = {
        "rows": 2,
        "offset": 3,
        "format": "text",
        "chat_template": "{{ messages }}",
        "train_on_inputs": True,
        "max_length": 64,
        "on_too_long": "drop",
        "field_mapping": '{"text": "story"}',
    }

    answer = client.get(
        f"/datasets/{driver.dataset()}/preview", params={"base_model": "tiny", **options}
    )

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["dataset_id"], body["base_model"]) == (driver.dataset(), "tiny")
    assert (body["format"], body["offset"], body["has_more"]) == ("text", 3, True)
    assert PreviewRow.model_validate(body["rows"][0]) == ROW
    [asked] = doorbell.requests
    assert (asked.num_rows, asked.offset, asked.model_folder.name) == (2, 3, "tiny")
    assert asked.dataset.path.read_bytes() == json.dumps(STORED).encode()
    given = {**options, "field_mapping": {"text": "story"}}
    for name in options.keys() - {"rows", "offset"}:
        assert getattr(asked.options, name) == given[name]


def test_a_data_set_that_cannot_be_shown_is_the_requests_fault(answering: Answer, driver: Driver):
    failure = ToolFailure(code="unusable_data", message="cut off", is_input_at_fault=True)
    client, _ = answering(failure)

    error = refusal(client.get(f"/datasets/{driver.dataset()}/preview?base_model=tiny"), 422)

    assert (error["code"], error["message"]) == ("unusable_data", "cut off")


def test_without_a_worker_a_preview_says_what_to_start(client: TestClient, driver: Driver):
    error = refusal(client.get(f"/datasets/{driver.dataset()}/preview?base_model=tiny"), 503)

    assert error["code"] == "no_worker"
    assert "lorad worker" in error["message"]


def test_an_unknown_model_or_data_set_is_not_found(client: TestClient, driver: Driver):
    model = refusal(client.get(f"/datasets/{driver.dataset()}/preview?base_model=huge"), 404)
    dataset = refusal(client.get(f"/datasets/ds-{'0' * 24}/preview?base_model=tiny"), 404)

    assert (model["code"], model["param"]) == ("unknown_model", "base_model")
    assert "tiny" in model["message"]
    assert dataset["param"] == "dataset_id"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "base_model"),
        ("base_model=../tiny", "base_model"),
        ("base_model=tiny&rows=0", "rows"),
        ("base_model=tiny&rows=51", "rows"),
        ("base_model=tiny&offset=-1", "offset"),
        ("base_model=tiny&max_length=7", "max_length"),
        ("base_model=tiny&max_length=32769", "max_length"),
        ("base_model=tiny&format=xml", "format"),
        ("base_model=tiny&row=3", "row"),
        ("base_model=tiny&field_mapping=prompt", "field_mapping"),
        ('base_model=tiny&field_mapping={"prompt": 3}', "field_mapping"),
        ('base_model=tiny&field_mapping=["prompt"]', "field_mapping"),
    ],
)
def test_what_a_preview_cannot_take_is_refused_by_name(
    client: TestClient, driver: Driver, query: str, param: str
):
    error = refusal(client.get(f"/datasets/{driver.dataset()}/preview?{query}"), 422)

    assert error["param"] == param
