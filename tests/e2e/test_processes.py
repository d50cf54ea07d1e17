"""What happens to processes: who loads what, who dies with whom, and what a job makes of it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Outcome, outcome
from tests.e2e.rows import ROWS, spec, submitted
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.services
on_sqlite = pytest.mark.parametrize("shared_stack", ["sqlite"], indirect=True)
on_both = pytest.mark.parametrize("shared_stack", ["sqlite", "postgresql"], indirect=True)

MakeStack = Callable[..., Stack]
SERVICE_LIBRARIES = {"celery", "kombu", "fastapi", "starlette", "sqlalchemy", "redis", "psycopg"}


def require_clean_trainer(report: Path) -> None:
    seen = json.loads(report.read_text())
    loaded = {name.partition(".")[0] for name in seen["modules"]}
    ours = {name for name in seen["modules"] if name.startswith("app.")}
    assert {"torch", "peft"} <= loaded
    assert not loaded & SERVICE_LIBRARIES
    assert {name for name in ours if not name.startswith("app.domain")} == set()
    kept = {name for name in seen["environment"] if name.startswith("LORAD_")}
    assert kept == {"LORAD_FAILPOINTS"}
    assert "lorad.db" not in json.dumps(seen["environment"])


def test_a_trainer_of_either_launcher_holds_no_service_modules_and_no_credentials(
    make_stack: MakeStack, tmp_path: Path
):
    reports = {name: tmp_path / f"{name}.json" for name in ("warm", "fresh")}
    stack = make_stack(LORAD_FAILPOINTS=f"trainer.step=report:{reports['warm']}@1")
    warm = submitted(stack, max_steps=2)
    stack.wait_for_state(warm, "succeeded")
    stack.stop("worker")
    failpoint = f"trainer.step=report:{reports['fresh']}@1"
    stack.start("worker", LORAD_LAUNCHER="fresh", LORAD_FAILPOINTS=failpoint)
    fresh = submitted(stack, max_steps=2)
    stack.wait_for_state(fresh, "succeeded")

    for report in reports.values():
        require_clean_trainer(report)
    assert stack.adapter(fresh) == stack.adapter(warm)


@on_both
def test_a_killed_trainer_is_replaced_at_once_and_learns_the_same(stack: Stack, golden: Outcome):
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 8)

    (trainer,) = stack.trainers()
    trainer.send_signal(signal.SIGKILL)

    assert outcome(stack, job_id) == golden
    job = stack.job(job_id)
    assert (job["attempt"], job["crash_streak"]) == (2, 0)
    crash = "the trainer ended with signal SIGKILL; trying again"
    assert crash in [each["message"] for each in stack.events(job_id)]


@on_both
def test_nothing_survives_a_killed_worker_and_its_job_starts_again(stack: Stack, golden: Outcome):
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 7)
    worker = psutil.Process(stack.processes["worker"].pid)
    below = worker.children(recursive=True)
    (trainer,) = stack.trainers()

    worker.send_signal(signal.SIGKILL)
    stack.processes.pop("worker").wait()
    gone, alive = psutil.wait_procs(below, timeout=5)
    stack.start("worker")

    assert trainer in gone
    assert alive == []
    assert outcome(stack, job_id) == golden
    assert "its worker died" in [each["message"] for each in stack.events(job_id)]


@on_both
def test_a_worker_that_is_stopped_checkpoints_and_gives_the_job_back(stack: Stack, golden: Outcome):
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 7)

    status = stack.stop("worker")

    job = stack.job(job_id)
    assert status == 0
    assert (job["state"], job["state_reason"], job["crash_streak"]) == ("queued", "drain", 0)
    assert job["waiting_for"].startswith("no worker is running")
    saved = stack.http.get(f"/jobs/{job_id}/checkpoints/latest").json()
    assert saved["step"] == job["step"] >= 7
    stack.start("worker")
    assert outcome(stack, job_id) == golden
    starts = [each["message"] for each in stack.events(job_id) if each["to_state"] == "running"]
    assert starts == ["training from step 0", f"training from step {job['step']}"]


def test_a_trainer_that_does_not_stop_is_ended_with_its_children(make_stack: MakeStack):
    stack = make_stack(
        LORAD_FAILPOINTS="trainer.step=stop@3;trainer.load=child:300",
        LORAD_CANCEL_GRACE_SECONDS="0.5",
    )
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 2)
    (trainer,) = stack.trainers()
    children = trainer.children()  # the failpoint's, and the examiner

    stack.post(job_id, "cancel")

    stack.wait_for_state(job_id, "cancelled", seconds=20)
    assert len(children) == 2
    _, alive = psutil.wait_procs([trainer, *children], timeout=3)
    assert alive == []


def test_processes_that_a_killed_trainer_started_end_with_it(make_stack: MakeStack):
    stack = make_stack(LORAD_FAILPOINTS="trainer.micro_batch=child:600@1;trainer.step=sleep:0.08")
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 2)
    (trainer,) = stack.trainers()
    started = [each for each in trainer.children() if each.name() == "sleep"]
    assert started

    trainer.send_signal(signal.SIGKILL)

    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive


def test_a_trainer_that_crashes_at_every_start_fails_the_job(make_stack: MakeStack):
    stack = make_stack(LORAD_FAILPOINTS="trainer.load=kill")
    job_id = submitted(stack)

    job = stack.wait_for_state(job_id, "failed", seconds=60)

    assert (job["attempt"], job["error"]["code"]) == (3, "crash_loop")
    assert "SIGKILL" in job["error"]["message"]


def test_crashes_with_progress_in_between_do_not_fail_the_job(
    make_stack: MakeStack, golden: Outcome
):
    stack = make_stack(LORAD_FAILPOINTS="trainer.step=kill@7")
    job_id = submitted(stack)

    assert outcome(stack, job_id) == golden
    assert stack.job(job_id)["attempt"] == 4


@on_sqlite
def test_a_failure_that_would_repeat_is_not_tried_again(stack: Stack):
    bad = spec(stack, stack.upload(ROWS))
    bad["lora"]["target_modules"] = ["no_such_layer"]

    job = stack.wait_for_state(stack.submit(bad), "failed")

    assert (job["attempt"], job["error"]["code"]) == (1, "no_matching_layers")
    assert "q_proj" in job["error"]["message"]


@on_sqlite
def test_slots_and_priority_decide_who_runs(stack: Stack):
    first = submitted(stack, max_steps=12)
    stack.wait_for_step(first, 1)
    later = submitted(stack, max_steps=2)
    urgent = stack.submit(spec(stack, stack.upload(ROWS), max_steps=2) | {"priority": 5})

    waiting = stack.job(later)

    busy = "every worker that can run it is busy"
    assert (waiting["state"], waiting["waiting_for"]) == ("queued", busy)
    done = [stack.wait_for_state(job_id, "succeeded") for job_id in (first, urgent, later)]
    starts = [job["started_at"] for job in done]
    assert starts == sorted(starts)


@on_sqlite
def test_two_workers_of_one_home_train_at_the_same_time(
    stack: Stack, request: pytest.FixtureRequest
):
    stack.start("second worker")
    request.addfinalizer(lambda: stack.stop("second worker"))
    jobs = [submitted(stack, max_steps=2000) for _ in range(2)]

    stack.wait_until(
        lambda: {stack.job(job_id)["state"] for job_id in jobs} == {"running"},
        what="both jobs to run",
        seconds=60,
    )

    assert len({stack.job(job_id)["worker"] for job_id in jobs}) == 2
    for job_id in jobs:
        stack.post(job_id, "cancel")
        stack.wait_for_state(job_id, "cancelled")


@on_sqlite
def test_the_api_may_die_while_jobs_run(stack: Stack, golden: Outcome):
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 4)

    stack.kill_tree("api")
    stack.start("api")

    assert outcome(stack, job_id) == golden
    assert stack.job(job_id)["attempt"] == 1


@on_sqlite
def test_a_job_nobody_can_run_says_why(stack: Stack):
    wanted = spec(stack, stack.upload(ROWS)) | {"resources": {"device": "cuda"}}

    job = stack.job(stack.submit(wanted))

    assert (job["state"], job["waiting_for"]) == ("queued", "no worker has a cuda device")
    stack.post(job["id"], "cancel")


@on_sqlite
def test_redis_may_be_away_while_jobs_run_and_are_submitted(stack: Stack, golden: Outcome):
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 3)
    stack.stop("valkey", signal.SIGKILL)
    waiting = submitted(stack, max_steps=2)

    assert outcome(stack, job_id) == golden
    # The slot that became free takes the next job without a bell.
    stack.wait_for_state(waiting, "succeeded")
    third = submitted(stack, max_steps=2)
    assert stack.job(third)["state"] == "queued"
    stack.start("valkey")
    stack.wait_for_state(third, "succeeded", seconds=60)


@on_sqlite
def test_a_tool_answers_while_the_only_slot_trains(stack: Stack):
    job_id = submitted(stack, max_steps=400)
    stack.wait_for_step(job_id, 6)
    question = {"messages": [[{"role": "user", "content": "hello"}]], "max_new_tokens": 4}

    answers = [
        stack.post(job_id, "generate", {**question, "checkpoint": which})
        for which in ("base", "latest", 5)
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert answers[0].json()["checkpoint"] == "base"
    assert stack.job(job_id)["state"] == "running"
    stack.post(job_id, "cancel")
    stack.wait_for_state(job_id, "cancelled")
    stack.stop("worker")
    gone = stack.post(job_id, "generate", question)
    assert (gone.status_code, gone.json()["error"]["code"]) == (503, "no_worker")
    assert "lorad worker" in gone.json()["error"]["message"]
