"""Fine-tuning jobs over OpenAI's client: what is asked runs, is echoed, and is refused by name."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from app.domain.jobs import JobState
from app.services import runs
from tests.openai.conftest import Wire, lines
from tests.services.driver import Driver

MakeJob = Callable[..., Any]


def spec_of(job: Any) -> dict[str, Any]:
    return job.lorad["spec"]


def test_a_job_is_what_was_asked_for_and_says_so(client: openai.OpenAI, make_job: MakeJob):
    held_out = client.files.create(file=("held.jsonl", lines()), purpose="fine-tune")

    job = make_job(
        suffix="My Model",
        seed=7,
        metadata={"team": "red"},
        validation_file=held_out.id,
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "n_epochs": 2,
                    "batch_size": 8,
                    "learning_rate_multiplier": 1.7,
                }
            },
        },
        extra_body={"lora": {"r": 4}, "priority": 3, "training": {"save_steps": 5}},
    )

    spec = spec_of(job)
    assert spec["training"]["num_train_epochs"] == 2
    assert spec["training"]["per_device_train_batch_size"] == 8
    assert spec["training"]["learning_rate"] == pytest.approx(3.4e-4)
    assert spec["training"]["save_steps"] == 5
    assert (spec["lora"]["r"], spec["priority"], spec["seed"]) == (4, 3, 7)
    assert spec["dataset"]["eval_id"] == held_out.id.replace("file-", "ds-")
    assert (job.status, job.seed, job.metadata) == ("queued", 7, {"team": "red"})
    assert job.validation_file == held_out.id
    assert job.hyperparameters.to_dict() == {
        "n_epochs": 2,
        "batch_size": 8,
        "learning_rate_multiplier": 1.7,
    }
    assert job.method.supervised.hyperparameters.n_epochs == 2
    assert job.user_provided_suffix == "My Model"
    assert client.fine_tuning.jobs.retrieve(job.id).to_dict() == job.to_dict()


def test_what_is_left_open_is_auto_and_has_our_defaults(make_job: MakeJob):
    job = make_job(hyperparameters={"n_epochs": "auto"})

    training = spec_of(job)["training"]
    assert job.hyperparameters.to_dict() == {
        "n_epochs": "auto",
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }
    assert training["num_train_epochs"] == 3
    assert training["learning_rate"] == 2e-4
    assert job.seed == 42


def test_other_tools_names_are_understood(make_job: MakeJob):
    job = make_job(extra_body={"lora_rank": 4, "training": {"lr": 1e-3, "max_steps": 3}})

    assert spec_of(job)["lora"]["r"] == 4
    assert job.hyperparameters.learning_rate_multiplier == 5
    assert job.hyperparameters.n_epochs == "auto"


def test_a_native_job_is_shown_with_what_it_runs_with(client: openai.OpenAI, driver: Driver):
    job_id = driver.submit(training={"max_steps": None, "num_train_epochs": 1.5})

    job = client.fine_tuning.jobs.retrieve(job_id.replace("job-", "ftjob-"))

    assert job.hyperparameters.n_epochs == 1.5
    assert job.hyperparameters.batch_size == 4


DPO = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}
WANDB = [{"type": "wandb", "wandb": {"project": "p"}}]
BOTH = {
    "hyperparameters": {"n_epochs": 1},
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "dpo": ({"method": DPO}, "method.type", "dpo"),
    "reinforcement": ({"method": {"type": "reinforcement"}}, "method.type", "reinforcement"),
    "wandb": ({"integrations": WANDB}, "integrations", "wandb"),
    "a tuned model": ({"model": "ft:tiny:lorad::0"}, "model", "base model"),
    "no epochs": ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "1 to 50"),
    "half a batch": ({"hyperparameters": {"batch_size": 0.5}}, "hyperparameters.batch_size", "256"),
    "both places": (BOTH, "hyperparameters", "give one"),
    "a suffix too long": ({"suffix": "s" * 65}, "suffix", "64"),
    "a seed below 0": ({"seed": -1}, "seed", "greater"),
    "from a checkpoint": (
        {"extra_body": {"from_checkpoint": "ftckpt_1"}},
        "from_checkpoint",
        "resume",
    ),
    "an unknown key": ({"extra_body": {"hyperparameter": {}}}, "hyperparameter", "hyperparameters"),
    "an unknown key of ours": ({"extra_body": {"lora": {"rr": 1}}}, "lora.rr", "did you mean r?"),
    "a data set twice": (
        {"extra_body": {"dataset": {"id": "ds-0"}}},
        "dataset.id",
        "training_file",
    ),
    "two rates": (
        {
            "hyperparameters": {"learning_rate_multiplier": 2},
            "extra_body": {"training": {"learning_rate": 1e-3}},
        },
        "hyperparameters.learning_rate_multiplier",
        "training.learning_rate = 0.001",
    ),
    "two horizons": (
        {"hyperparameters": {"n_epochs": 2}, "extra_body": {"training": {"max_steps": 5}}},
        "hyperparameters.n_epochs",
        "training.max_steps = 5",
    ),
    "two batches": (
        {
            "hyperparameters": {"batch_size": 6},
            "extra_body": {"training": {"per_device_train_batch_size": 4}},
        },
        "hyperparameters.batch_size",
        "per_device_train_batch_size = 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    client: openai.OpenAI, make_job: MakeJob, name: str
):
    changes, param, hint = REFUSED[name]

    with pytest.raises(openai.BadRequestError) as refused:
        make_job(**changes)

    assert hint in refused.value.message
    assert refused.value.param == param
    assert refused.value.code
    assert client.fine_tuning.jobs.list().data == []


def test_a_model_and_a_file_that_are_not_there_are_404s(make_job: MakeJob):
    with pytest.raises(openai.NotFoundError, match="not loaded from a hub") as model:
        make_job(model="org/other")
    with pytest.raises(openai.NotFoundError) as file:
        make_job(training_file="file-0123456789abcdef01234567")

    assert (model.value.param, model.value.code) == ("model", "model_not_found")
    assert (file.value.param, file.value.code) == ("training_file", "file_not_found")


def test_jobs_are_listed_over_pages_and_by_metadata(client: openai.OpenAI, make_job: MakeJob):
    file = client.files.create(file=("rows.jsonl", lines()), purpose="fine-tune").id
    kinds: list[dict[str, str]] = [{"a": "1"}, {"a": "2", 'q"]': "x"}, {}, {"a": "1", "b": "2"}, {}]
    ids = [make_job(training_file=file, metadata=each).id for each in kinds]
    listed = client.fine_tuning.jobs.list

    def found(**filters: Any) -> list[str]:
        return [job.id for job in listed(limit=2, **filters)]

    assert found() == ids[::-1]
    assert found(metadata={"a": "1"}) == [ids[3], ids[0]]
    assert found(metadata={"a": "1", "b": "2"}) == [ids[3]]
    assert found(metadata={'q"]': "x"}) == [ids[1]]
    assert found(metadata={"a": "3"}) == []
    assert found(extra_query={"metadata": "null"}) == [ids[4], ids[2]]
    with pytest.raises(openai.BadRequestError) as refused:
        found(extra_query={"state": "queued"})
    assert refused.value.param == "state"


def test_a_job_goes_through_its_states(client: openai.OpenAI, make_job: MakeJob, driver: Driver):
    job_id = make_job(extra_body={"training": {"max_steps": 4}}).id

    def status() -> str:
        return client.fine_tuning.jobs.retrieve(job_id).status

    statuses: list[str] = [status()]
    run = driver.claimed()
    statuses.append(status())
    runs.begin(driver.db, driver.settings, run)
    driver.record(run, driver.ready(run, step=0))
    driver.move(run, JobState.STARTING, JobState.RUNNING)
    statuses.append(status())
    driver.train(run, 1, 4, save_every=4)
    running = client.fine_tuning.jobs.retrieve(job_id)
    driver.succeed(run, 4)

    assert statuses == ["queued", "validating_files", "running"]
    assert running.estimated_finish is not None
    assert (running.fine_tuned_model, running.trained_tokens) == (None, None)
    done = client.fine_tuning.jobs.retrieve(job_id)
    tail = job_id.removeprefix("ftjob-")
    assert done.status == "succeeded"
    assert done.fine_tuned_model == f"ft:tiny:lorad::{tail}"
    assert done.result_files == [f"file-r{tail}"]
    steps = driver.sql("SELECT body FROM trainer_events WHERE kind = 'step'")
    assert done.trained_tokens == sum(
        json.loads(body)["metrics"]["num_target_tokens"] for (body,) in steps
    )
    assert done.finished_at is not None
    assert done.error is None


def test_a_failed_job_says_why(client: openai.OpenAI, make_job: MakeJob, driver: Driver):
    job_id = make_job().id
    driver.fail(driver.started())

    job = client.fine_tuning.jobs.retrieve(job_id)

    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("nonfinite_step", "by hand")
    newest = client.fine_tuning.jobs.list_events(job_id).data[0]
    assert newest.level == "error"


def test_cancelling_twice_is_final_and_not_tried_again(
    client: openai.OpenAI, make_job: MakeJob, wire: Wire
):
    job_id = make_job().id
    client.fine_tuning.jobs.cancel(job_id)
    wire.requests.clear()

    with pytest.raises(openai.ConflictError, match=f"{job_id}: it is cancelled") as refused:
        client.fine_tuning.jobs.cancel(job_id)

    assert refused.value.code == "state_conflict"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(wire.requests) == 1


def test_what_comes_again_because_no_answer_came_is_done_once(
    client: openai.OpenAI, make_job: MakeJob, wire: Wire
):
    file = client.files.create(file=("rows.jsonl", lines()), purpose="fine-tune").id
    wire.cuts = 2

    job = make_job(training_file=file)

    assert [each.id for each in client.fine_tuning.jobs.list()] == [job.id]
    for act in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        wire.cuts = 1
        act(job.id)
    wire.cuts = 1
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    second = make_job(training_file=file)
    assert second.id != job.id  # asked for twice on purpose, it is made twice


def test_one_idempotency_key_makes_one_job(client: openai.OpenAI, make_job: MakeJob):
    file = client.files.create(file=("rows.jsonl", lines()), purpose="fine-tune").id
    key = {"Idempotency-Key": "mine"}

    first = make_job(training_file=file, extra_headers=key)
    second = make_job(training_file=file, extra_headers=key)

    assert first.id == second.id
    with pytest.raises(openai.ConflictError) as refused:
        make_job(training_file=file, seed=1, extra_headers=key)
    assert refused.value.code == "idempotency_conflict"


def test_events_are_paged_while_new_ones_come_in(
    client: openai.OpenAI, make_job: MakeJob, driver: Driver
):
    job_id = make_job(extra_body={"training": {"max_steps": 60}}).id
    run = driver.started()
    driver.train(run, 1, 20, save_every=5)
    before = list(client.fine_tuning.jobs.list_events(job_id, limit=100))
    seen: list[str] = []

    page = client.fine_tuning.jobs.list_events(job_id, limit=4)
    for step in range(21, 61):
        seen += [event.id for event in page.data]
        driver.train(run, step, step, save_every=5)
        if not page.has_next_page():
            break
        page = page.get_next_page()

    assert seen == [event.id for event in before]
    assert len(set(seen)) == len(seen)
    metrics = [event for event in before if event.type == "metrics"]
    data: Any = metrics[0].data
    assert [data["step"], data["total_steps"], data["train_loss"]] == [20, 60, data["train_loss"]]
    assert [each.data["step"] for each in metrics] == list(range(20, 0, -1))  # type: ignore[index]
    assert before[-1].message == "submitted"
    times = [event.created_at for event in before]
    assert times == sorted(times, reverse=True)
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.list_events(job_id, after="ftevent-1")
    assert (refused.value.param, refused.value.code) == ("after", "invalid_cursor")


def test_checkpoints_are_listed_newest_first_and_resumed_from_by_every_name(
    client: openai.OpenAI, make_job: MakeJob, driver: Driver
):
    job_id = make_job(extra_body={"training": {"max_steps": 8, "save_total_limit": None}}).id
    run = driver.started()
    driver.train(run, 1, 6, save_every=2)
    client.fine_tuning.jobs.pause(job_id)
    pausing = client.fine_tuning.jobs.retrieve(job_id).status
    driver.stop(run)
    jobs = client.fine_tuning.jobs

    found = list(jobs.checkpoints.list(job_id, limit=1))

    assert pausing == "pausing"
    assert [each.step_number for each in found] == [6, 4, 2]
    name = found[1].fine_tuned_model_checkpoint
    tail = job_id.removeprefix("ftjob-")
    assert name == f"ft:tiny:lorad::{tail}:ckpt-step-4"
    assert found[1].metrics.train_loss == 1.0
    for wanted in (6, "latest", found[0].id, found[1].fine_tuned_model_checkpoint):
        assert jobs.resume(job_id, extra_body={"from_checkpoint": wanted}).status == "queued"
        jobs.pause(job_id)
    assert [each.step_number for each in jobs.checkpoints.list(job_id)] == [4, 2]
    with pytest.raises(openai.ConflictError) as refused:
        jobs.resume(job_id, extra_body={"from_checkpoint": found[0].id})
    assert (refused.value.param, refused.value.code) == ("from_checkpoint", "checkpoint_unusable")
    with pytest.raises(openai.BadRequestError, match="another job"):
        jobs.resume(job_id, extra_body={"from_checkpoint": f"ft:tiny:lorad::{'0' * 24}:latest"})
    with pytest.raises(openai.NotFoundError):
        jobs.resume(job_id, extra_body={"from_checkpoint": 5})
    resumed = jobs.resume(job_id, extra_body={"training": {"max_steps": 12}})
    assert spec_of(resumed)["training"]["max_steps"] == 12


def test_models_are_listed_found_by_every_name_and_deleted_with_their_job_left(
    client: openai.OpenAI, succeeded: Callable[..., str]
):
    job_id = succeeded(suffix="mine")
    tuned = client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model
    assert tuned is not None

    assert [model.id for model in client.models.list()] == ["tiny", tuned]
    for name in ("tiny", tuned, f"{tuned}:ckpt-step-2", f"{tuned}:latest"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.BadRequestError, match="base model"):
        client.models.delete("tiny")
    with pytest.raises(openai.BadRequestError, match="checkpoint"):
        client.models.delete(f"{tuned}:latest")
    assert client.models.delete(tuned).deleted
    for name in (tuned, f"{tuned}:ckpt-step-2", "nothing"):
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve(name)
        assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.delete(tuned)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.fine_tuning.jobs.retrieve(job_id).status == "succeeded"


def test_a_model_that_is_being_made_is_not_deleted(
    client: openai.OpenAI, make_job: MakeJob, driver: Driver
):
    job_id = make_job().id
    driver.train(driver.started(), 1, 2, save_every=2)
    name = f"ft:tiny:lorad::{job_id.removeprefix('ftjob-')}"

    assert [model.id for model in client.models.list()] == ["tiny", f"{name}:latest"]
    with pytest.raises(openai.ConflictError) as refused:
        client.models.delete(name)

    assert (refused.value.param, refused.value.code) == ("model", "in_use")


def test_permissions_and_graders_are_refused_by_name(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="permissions"):
        client.fine_tuning.checkpoints.permissions.create("ft:x:y::0", project_ids=["p"])
    with pytest.raises(openai.BadRequestError, match="graders") as refused:
        client.fine_tuning.alpha.graders.validate(
            grader={
                "type": "string_check",
                "name": "x",
                "input": "a",
                "reference": "a",
                "operation": "eq",
            }
        )

    assert refused.value.code == "not_available"
