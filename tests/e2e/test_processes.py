"""What happens to processes: who loads what, who dies with whom, and what a job makes of it."""

import json
import signal
from collections.abc import Callable

import psutil
import pytest

from tests.e2e.rows import ROWS, SLOW, spec, submitted
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.services
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

MakeStack = Callable[..., Stack]


@on_sqlite
@pytest.mark.parametrize("launcher", ["warm", "fresh"])
def test_a_trainer_holds_no_service_modules_and_no_credentials(
    make_stack: MakeStack, short_home, launcher: str
):
    report = short_home / "report.json"
    stack = make_stack(LORAD_LAUNCHER=launcher, LORAD_FAILPOINTS=f"trainer.step=report:{report}@1")
    job_id = submitted(stack, max_steps=1)
    stack.wait_for_state(job_id, "succeeded")

    seen = json.loads(report.read_text())

    loaded = {name.partition(".")[0] for name in seen["modules"]}
    assert {"torch", "peft"} <= loaded
    assert not loaded & {
        "celery",
        "kombu",
        "fastapi",
        "starlette",
        "sqlalchemy",
        "redis",
        "psycopg",
    }
    assert not [
        name for name in seen["modules"] if name.startswith("app.") and "domain" not in name
    ]
    kept = {name for name in seen["environment"] if name.startswith("LORAD_")}
    assert kept == {"LORAD_FAILPOINTS"}
    assert "lorad.db" not in json.dumps(seen["environment"])


@on_sqlite
def test_both_launchers_train_the_same_adapter(make_stack: MakeStack):
    stack = make_stack()
    dataset = stack.upload(ROWS)
    warm = stack.submit(spec(stack, dataset, max_steps=4))
    stack.wait_for_state(warm, "succeeded")
    stack.stop("worker")
    stack.start("worker", LORAD_LAUNCHER="fresh")
    fresh = stack.submit(spec(stack, dataset, max_steps=4))

    stack.wait_for_state(fresh, "succeeded")

    assert stack.adapter(fresh) == stack.adapter(warm)


def test_a_killed_trainer_is_replaced_at_once_and_learns_the_same(make_stack: MakeStack):
    stack = make_stack(**SLOW)
    golden = submitted(stack)
    stack.wait_for_state(golden, "succeeded")
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 8)

    (trainer,) = stack.trainers()
    trainer.send_signal(signal.SIGKILL)

    job = stack.wait_for_state(job_id, "succeeded")
    assert (job["attempt"], job["crash_streak"]) == (2, 0)
    crash = "the trainer ended with signal SIGKILL; trying again"
    assert crash in [each["message"] for each in stack.events(job_id)]
    assert stack.adapter(job_id) == stack.adapter(golden)


@pytest.mark.parametrize("launcher", ["warm", "fresh"])
@on_sqlite
def test_nothing_survives_a_killed_worker(make_stack: MakeStack, launcher: str):
    failpoints = "trainer.step=sleep:0.15;trainer.load=child:300"
    stack = make_stack(LORAD_LAUNCHER=launcher, LORAD_FAILPOINTS=failpoints)
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 2)
    worker = psutil.Process(stack.processes["worker"].pid)
    (trainer,) = stack.trainers()
    below = [each for each in worker.children(recursive=True) if each.name() != "sleep"]

    worker.send_signal(signal.SIGKILL)
    stack.processes.pop("worker").wait()

    gone, alive = psutil.wait_procs(below, timeout=3)
    assert trainer in gone
    assert alive == []


@on_sqlite
def test_children_of_a_trainer_end_with_it(make_stack: MakeStack):
    failpoints = "trainer.load=child:300"
    stack = make_stack(LORAD_FAILPOINTS="trainer.step=sleep:0.15;" + failpoints)
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 2)
    (trainer,) = stack.trainers()
    (child,) = trainer.children()

    stack.post(job_id, "cancel")
    stack.wait_for_state(job_id, "cancelled")

    _, alive = psutil.wait_procs([trainer, child], timeout=3)
    assert alive == []


def test_a_job_whose_worker_died_starts_again_on_the_next_one(make_stack: MakeStack):
    stack = make_stack(**SLOW)
    golden = submitted(stack)
    stack.wait_for_state(golden, "succeeded")
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 7)

    stack.kill_tree("worker")
    stack.start("worker")

    stack.wait_for_state(job_id, "succeeded", seconds=90)
    reasons = [each["message"] for each in stack.events(job_id)]
    assert "its worker died" in reasons
    assert stack.adapter(job_id) == stack.adapter(golden)


def test_a_worker_that_is_stopped_checkpoints_and_gives_the_job_back(make_stack: MakeStack):
    stack = make_stack(**SLOW)
    golden = submitted(stack)
    stack.wait_for_state(golden, "succeeded")
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 7)

    status = stack.stop("worker")

    job = stack.job(job_id)
    assert status == 0
    assert (job["state"], job["state_reason"], job["crash_streak"]) == ("queued", "drain", 0)
    assert job["waiting_for"].startswith("no worker is running")
    saved = stack.http.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert saved[-1]["step"] == job["step"] >= 7
    stack.start("worker")
    stack.wait_for_state(job_id, "succeeded")
    starts = [each["message"] for each in stack.events(job_id) if each["to_state"] == "running"]
    assert starts == ["training from step 0", f"training from step {job['step']}"]
    assert stack.adapter(job_id) == stack.adapter(golden)


@on_sqlite
@pytest.mark.parametrize("fault", ["sleep:300", "stop"])
def test_a_trainer_that_does_not_stop_is_ended(make_stack: MakeStack, fault: str):
    stack = make_stack(LORAD_FAILPOINTS=f"trainer.step={fault}@3", LORAD_CANCEL_GRACE_SECONDS="0.5")
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 2)
    (trainer,) = stack.trainers()

    stack.post(job_id, "cancel")

    stack.wait_for_state(job_id, "cancelled", seconds=20)
    assert not trainer.is_running()


@on_sqlite
def test_a_trainer_that_crashes_at_every_start_fails_the_job(make_stack: MakeStack):
    stack = make_stack(LORAD_FAILPOINTS="trainer.load=kill")
    job_id = submitted(stack)

    job = stack.wait_for_state(job_id, "failed", seconds=40)

    assert (job["attempt"], job["error"]["code"]) == (3, "crash_loop")
    assert "SIGKILL" in job["error"]["message"]


@on_sqlite
def test_crashes_with_progress_in_between_do_not_fail_the_job(make_stack: MakeStack):
    stack = make_stack(LORAD_FAILPOINTS="trainer.step=kill@7")
    job_id = submitted(stack)

    job = stack.wait_for_state(job_id, "succeeded", seconds=60)

    assert job["attempt"] == 4
    assert [each["step"] for each in stack.metrics(job_id)] == list(range(1, 21))


@on_sqlite
def test_a_failure_that_would_repeat_is_not_tried_again(stack: Stack):
    bad = spec(stack, stack.upload(ROWS))
    bad["lora"]["target_modules"] = ["no_such_layer"]

    job = stack.wait_for_state(stack.submit(bad), "failed")

    assert (job["attempt"], job["error"]["code"]) == (1, "no_matching_layers")
    assert "q_proj" in job["error"]["message"]


@on_sqlite
def test_slots_and_priority_decide_who_runs(make_stack: MakeStack):
    stack = make_stack(**SLOW)
    first = submitted(stack, max_steps=8)
    stack.wait_for_step(first, 1)
    later = submitted(stack, max_steps=2)
    urgent = spec(stack, stack.upload(ROWS), max_steps=2) | {"priority": 5}
    urgent_id = stack.submit(urgent)

    waiting = stack.job(later)

    assert (waiting["state"], waiting["waiting_for"]) == (
        "queued",
        "every worker that can run it is busy",
    )
    done = [stack.wait_for_state(job_id, "succeeded") for job_id in (first, urgent_id, later)]
    starts = [job["started_at"] for job in done]
    assert starts == sorted(starts)


@on_sqlite
def test_redis_may_be_away_from_start_to_end(make_stack: MakeStack):
    stack = make_stack("valkey", "api", "worker", **SLOW)
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 3)
    stack.stop("valkey", signal.SIGKILL)
    waiting = submitted(stack, max_steps=2)

    stack.wait_for_state(job_id, "succeeded")
    assert [each["step"] for each in stack.metrics(job_id)] == list(range(1, 21))
    # The slot that became free takes the next job without a bell.
    stack.wait_for_state(waiting, "succeeded")
    third = submitted(stack, max_steps=2)
    assert stack.job(third)["state"] == "queued"
    stack.start("valkey")
    stack.wait_for_state(third, "succeeded", seconds=60)


def test_a_job_nobody_can_run_says_why(stack: Stack):
    dataset = stack.upload(ROWS)
    wanted = spec(stack, dataset) | {"resources": {"device": "cuda"}}

    job = stack.job(stack.submit(wanted))

    assert (job["state"], job["waiting_for"]) == ("queued", "no worker has a cuda device")


@on_sqlite
def test_a_tool_answers_while_the_only_slot_trains(make_stack: MakeStack):
    stack = make_stack(**SLOW)
    job_id = submitted(stack, max_steps=60)
    stack.wait_for_step(job_id, 5)
    question = {"messages": [[{"role": "user", "content": "hello"}]], "max_new_tokens": 4}

    stack.wait_until(
        lambda: stack.http.get(f"/jobs/{job_id}/checkpoints").json()["data"] != [],
        what="a checkpoint",
    )
    answers = [
        stack.post(job_id, "generate", {**question, "checkpoint": which})
        for which in ("base", "latest", 5)
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert answers[0].json()["checkpoint"] == "base"
    assert stack.job(job_id)["state"] == "running"
    stack.stop("worker")
    gone = stack.post(job_id, "generate", question)
    assert (gone.status_code, gone.json()["error"]["code"]) == (503, "no_worker")
    assert "lorad worker" in gone.json()["error"]["message"]
