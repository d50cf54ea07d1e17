"""A name finds the model it names: its base, its adapter, its template, and nobody else's."""

from pathlib import Path

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain import model_names
from app.domain.errors import CheckpointUnusable, NotFound
from app.domain.jobs import JobState
from app.services import named_models, resume
from app.services.named_models import NamedModel
from app.services.resume import ResumeRequest
from tests.services.driver import Driver
from tests.services.place import (
    database,
    driver,
    home,
    outside,
    postgres_url,
    settings,
    shelf,
    tmp_path,
)

__all__ = ["database", "driver", "home", "outside", "postgres_url", "settings", "shelf", "tmp_path"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def found(driver: Driver, name: str, *, project: str = DEFAULT_PROJECT) -> NamedModel:
    return named_models.resolve(driver.db, driver.settings, project, name)


def missing(driver: Driver, name: str, *, project: str = DEFAULT_PROJECT) -> NotFound:
    with pytest.raises(NotFound) as caught:
        found(driver, name, project=project)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    return caught.value


def folder(model: NamedModel) -> Path:
    assert model.adapter is not None
    return model.adapter.folder


def test_a_base_model_is_asked_without_adapter(driver: Driver, home: Path):
    model = found(driver, "tiny")

    assert model.adapter is None
    assert model.host.model_folder == home / "models" / "tiny"
    assert (model.label, model.job_id, model.has_chat_template) == ("base", None, True)


def test_every_name_of_a_job_finds_its_own_adapter(driver: Driver):
    job_id = driver.submit(name="My Sky")
    run = driver.started()
    for step, loss in ((2, 1.0), (4, 3.0)):
        driver.checkpoint(run, step, eval_loss=loss)
    tuned = model_names.tuned("tiny", "My Sky", job_id)
    early = missing(driver, tuned)
    driver.succeed(run, 4)
    attempt = driver.attempt(run)

    assert "no final adapter, it is running" in early.message
    for name, expected in {
        tuned: attempt / "final",
        f"{job_id}": attempt / "final",
        f"{job_id}:final": attempt / "final",
        f"{tuned}:latest": attempt / "checkpoint-4",
        f"{tuned}:best": attempt / "checkpoint-2",
        f"{job_id}:best": attempt / "checkpoint-2",
        model_names.at_step(tuned, 2): attempt / "checkpoint-2",
        f"{job_id}:4": attempt / "checkpoint-4",
    }.items():
        model = found(driver, name)
        assert (folder(model), model.job_id) == (expected, job_id), name
    # Hosts keep adapters by name.
    adapters = [found(driver, f"{job_id}:{which}").adapter for which in (2, 4, "final")]
    assert len({adapter.name for adapter in adapters if adapter is not None}) == 3
    assert found(driver, f"{job_id}:2").label == "step 2"
    assert "it has: 2, 4" in missing(driver, model_names.at_step(tuned, 3)).message


def test_the_host_of_an_adapter_is_loaded_as_its_job_loads_it(driver: Driver):
    plain = driver.submit()
    quantized = driver.submit(adapter="qlora", training={"dtype": "float32"})

    models = [found(driver, f"{job_id}:base") for job_id in (plain, quantized)]

    assert [model.adapter for model in models] == [None, None]
    assert models[0].host.digest == found(driver, "tiny").host.digest
    assert models[1].host.quantization.load_in_4bit
    assert models[1].host.dtype == "float32"


def test_the_template_of_a_job_is_that_of_its_adapter(driver: Driver):
    job_id = driver.submit(dataset={"id": driver.dataset(), "chat_template": "{{ messages }}"})

    assert found(driver, f"{job_id}:base").chat_template == "{{ messages }}"
    assert found(driver, "tiny").chat_template is None


def test_another_project_does_not_find_it(driver: Driver):
    job_id, _ = driver.in_state(JobState.SUCCEEDED)
    found(driver, job_id)

    for name in (job_id, f"{job_id}:base", f"{job_id}:latest", f"{job_id}:5"):
        missing(driver, name, project="other")


@pytest.mark.parametrize("name", ["..", "../tiny", "tiny/", "none", "ft:", "ft:a:b:c:d", "job-1"])
def test_what_is_no_name_reaches_no_disk(driver: Driver, name: str):
    missing(driver, name)


def test_a_final_adapter_that_was_trained_on_has_another_name(driver: Driver):
    job_id, _ = driver.in_state(JobState.SUCCEEDED)
    before = found(driver, job_id)

    more = ResumeRequest.model_validate({"training": {"max_steps": 30}})
    resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, more)
    run = driver.started()
    driver.train(run, 21, 30, save_every=5)
    driver.succeed(run, 30)
    after = found(driver, job_id)

    assert before.fingerprint != after.fingerprint
    assert before.adapter is not None
    assert after.adapter is not None
    assert before.adapter.name != after.adapter.name


def test_damage_is_seen_also_after_the_adapter_was_asked(driver: Driver):
    job_id, run = driver.in_state(JobState.SUCCEEDED)
    for name, damaged in ((job_id, "final"), (f"{job_id}:5", "checkpoint-5")):
        adapter = driver.attempt(run) / damaged / "adapter_model.safetensors"
        found(driver, name)
        adapter.write_bytes(adapter.read_bytes()[:-1] + b"!")

        with pytest.raises(CheckpointUnusable, match="adapter_model"):
            found(driver, name)


def test_a_fingerprint_tells_models_and_adapters_apart(driver: Driver):
    job_id, _ = driver.in_state(JobState.SUCCEEDED)

    prints = {found(driver, name).fingerprint for name in ("tiny", job_id, f"{job_id}:5")}

    assert len(prints) == 3
    assert found(driver, "tiny").fingerprint in prints
