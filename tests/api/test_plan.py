"""Plans over HTTP: nothing is stored, faults are named, and without a worker it is a 503."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.memory import MemoryEstimate, MemoryPart
from app.domain.plans import PlanFacts, Work
from app.domain.tools import (
    REQUEST_FILE,
    RESULT_FILE,
    TOOL_REQUEST,
    PlanRequest,
    PlanResult,
    ToolFailure,
)
from tests.api.answers import refusal
from tests.fixtures.stack import Stack
from tests.services.driver import Driver, FakeDoorbell, FakeStream

MEMORY = MemoryEstimate(
    device="cpu",
    micro_batch_size=4,
    num_tokens=100,
    parts=(
        MemoryPart(name="weights", low_bytes=1, expected_bytes=2, high_bytes=3),
        MemoryPart(name="runtime", low_bytes=10, expected_bytes=20, high_bytes=30),
    ),
)
FACTS = PlanFacts(
    work=Work(
        num_rows=40,
        num_eval_rows=0,
        steps=100,
        steps_per_epoch=10,
        tokens_per_epoch=5000,
        target_tokens_per_epoch=1000,
        tokens_per_step=500.0,
        longest_row_tokens=50,
        num_trainable_parameters=7,
    ),
    memory=MEMORY,
    limit_bytes=21,
    fits=False,
    largest_micro_batch_size=3,
    checkpoint_bytes=1000,
    adapter_bytes=300,
    warnings=(),
)


class Worker(FakeDoorbell):
    """Answers a call at once."""

    def __init__(self, home: Path, result: Any) -> None:
        super().__init__()
        self.home, self.result = home, result
        self.asked: list[PlanRequest] = []

    def call_tool(self, task_id: str) -> bool:
        folder = self.home / "tools" / task_id
        request = TOOL_REQUEST.validate_json((folder / REQUEST_FILE).read_bytes())
        assert isinstance(request, PlanRequest)
        self.asked.append(request)
        (folder / RESULT_FILE).write_text(self.result.model_dump_json())
        return True


class Told(FakeStream):
    def wait_for_tool(self, task_id: str, *, seconds: float) -> bool:
        return True


@pytest.fixture
def plan_with(client: TestClient, driver: Driver) -> Callable[..., tuple[Any, Worker]]:
    """Return a function that plans a spec with a worker that gives a certain answer."""

    def ask(spec: dict[str, Any], result: Any = None) -> tuple[Any, Worker]:
        result = result or PlanResult(facts=FACTS)
        parts: Any = client.app.state.parts  # type: ignore[attr-defined]
        worker = Worker(parts.settings.home, result)
        outside = replace(parts.outside, doorbell=worker, stream=Told())
        client.app.state.parts = replace(parts, outside=outside)  # type: ignore[attr-defined]
        driver.worker()
        return client.post("/jobs/plan", json=spec), worker

    return ask


def test_a_plan_shows_the_whole_spec_and_stores_nothing(
    plan_with: Callable[..., tuple[Any, Worker]], client: TestClient, spec: dict[str, Any]
):
    spec["training"] = {"max_steps": 100, "save_steps": 10, "save_total_limit": 3}

    answer, worker = plan_with(spec)

    body = answer.json()
    assert answer.status_code == 200
    assert body["spec"]["training"]["learning_rate"] == 2e-4
    assert (body["memory"]["low_bytes"], body["memory"]["expected_bytes"]) == (11, 22)
    assert (body["fits"], body["largest_micro_batch_size"]) == (False, 3)
    # Three are kept, a fourth is complete before the oldest goes; and the final adapter.
    assert body["disk"]["num_checkpoints"] == 4
    assert body["disk"]["total_bytes"] == 4 * 1000 + 300
    assert body["disk"]["fits"] is True
    assert body["time"] is None
    assert worker.asked[0].run.spec.training.save_steps == 10
    assert client.get("/jobs").json()["data"] == []


def test_without_a_worker_it_says_what_to_start(client: TestClient, spec: dict[str, Any]):
    error = refusal(client.post("/jobs/plan", json=spec), 503)

    assert error["code"] == "no_worker"
    assert "lorad worker" in error["message"]


def test_what_the_job_would_fail_of_is_a_422(
    plan_with: Callable[..., tuple[Any, Worker]], spec: dict[str, Any]
):
    failure = ToolFailure(
        code="no_matching_layers",
        message="no linear layer is named x",
        is_input_at_fault=True,
        param="lora.target_modules",
    )

    answer, _ = plan_with(spec, failure)

    error = refusal(answer, 422)
    assert (error["code"], error["param"]) == ("no_matching_layers", "lora.target_modules")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"base_model": "no-such-model"}, 404, None),
        ({"dataset": {"id": "ds-" + "0" * 24}}, 404, "unknown_dataset"),
        ({"trainig": {}}, 422, None),
    ],
)
def test_what_a_job_would_be_refused_for_is_refused(
    client: TestClient, spec: dict[str, Any], change: dict[str, Any], status: int, code: str | None
):
    error = refusal(client.post("/jobs/plan", json={**spec, **change}), status)

    assert code in (None, error["code"])


@pytest.mark.services
@pytest.mark.timeout(300)
def test_a_plan_a_healed_job_and_its_memory_through_the_running_service(
    make_stack: Callable[..., Stack], tmp_path: Path
):
    stack = make_stack(LORAD_FAILPOINTS="trainer.micro_batch=raise:MEMORY@2")
    rows = "\n".join('{"prompt": "a b c", "completion": "d"}' for _ in range(8)).encode()
    uploaded = stack.http.post("/datasets", files={"file": ("rows.jsonl", rows)}).json()
    spec = {
        "base_model": "tiny-llama",
        "dataset": {"id": uploaded["id"]},
        "training": {"max_steps": 3, "per_device_train_batch_size": 4},
        "resources": {"max_memory_gb": 500},
    }

    before = stack.http.post("/jobs/plan", json=spec).json()
    job_id = stack.http.post("/jobs", json=spec).json()["id"]
    stack.wait_for_state(job_id, "succeeded", seconds=120)
    events = stack.http.get(f"/jobs/{job_id}/events").json()["data"]
    report = stack.http.get(f"/jobs/{job_id}/memory").json()
    after = stack.http.post("/jobs/plan", json=spec).json()

    assert "work" in before, before
    assert (before["work"]["steps"], before["time"]) == (3, None)
    assert before["fits"] is True
    (healed,) = [each for each in events if each["type"] == "healed"]
    assert healed["data"]["to_micro_batch_size"] == 2
    assert report["limit_bytes"] == 500e9
    assert report["expected_bytes"] == before["memory"]["expected_bytes"]
    assert {"data", "load", "probe", "train"} <= {each["phase"] for each in report["phases"]}
    assert after["time"]["num_jobs"] == 1
    assert after["time"]["total_seconds"] > 0
