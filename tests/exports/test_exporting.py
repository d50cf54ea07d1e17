"""The row of an export is the truth: who may write it, and how it ends."""

import os
from collections import Counter
from typing import Any

import pytest

from app.db.exports import Claimed
from app.db.keys import DEFAULT_PROJECT
from app.domain import failpoints
from app.domain.errors import Fenced, InUse, InvalidInput, NotFound, StateConflict
from app.domain.exports import FILES_FOLDER, Bounds, Export, Parity, export_folder, work_folder
from app.domain.jobs import JobState
from app.domain.tools import ExportProgress, ExportResult
from app.services import checkpoints, exporting, exports, jobs, reconcile, runs, sweep
from app.services.exports import ExportBody
from tests.services.driver import Driver

BOUNDS = Bounds(name="by-hand", min_greedy_agreement=0.99, max_mean_kl=1e-4)
PROOF = Parity(
    num_prompts=8,
    num_tokens=100,
    greedy_agreement=1.0,
    mean_kl=0.0,
    template_identical=True,
    tokens_identical=True,
    bounds=BOUNDS,
)
HALF = ExportProgress(phase="writing", progress=0.5)


def asked(driver: Driver, job_id: str, export_format: str = "adapter", **choices: Any) -> Export:
    body = ExportBody.model_validate({"format": export_format, **choices})
    key = (driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    return exports.create(*key, body)


def shown(driver: Driver, export: Export) -> Export:
    return exports.get(driver.db, driver.settings, DEFAULT_PROJECT, export.job_id, export.id)


def claimed(driver: Driver, worker_id: str | None = None) -> Claimed:
    key = exporting.claim(driver.db, driver.settings, worker_id or driver.worker())
    assert key is not None
    return key


def written(driver: Driver, key: Claimed, proof: Parity = PROOF) -> ExportResult:
    """Write what a process would leave."""
    files = work_folder(driver.settings.home, key.job_id, key.id, key.fence) / FILES_FOLDER
    files.mkdir(parents=True)
    (files / "a.txt").write_text("abc")
    listed = [{"name": "a.txt", "bytes": 3, "sha256": "0" * 64}]
    result = {"parity": proof, "files": listed, "dtype": "float32", "seconds": 1.0}
    return ExportResult.model_validate(result)


@pytest.fixture
def job_id(driver: Driver) -> str:
    """A job that has succeeded, with checkpoints at steps 10 and 20."""
    job_id = driver.submit()
    run = driver.started()
    driver.train(run, 1, 20, save_every=10)
    driver.succeed(run)
    return job_id


def test_an_export_is_claimed_once_and_ends_with_its_files(driver: Driver, job_id: str):
    export = asked(driver, job_id)
    assert (export.state, export.checkpoint, export.step) == ("queued", "final", 20)

    key = claimed(driver)
    assert exporting.claim(driver.db, driver.settings, driver.worker()) is None
    assert not exporting.renew(driver.db, driver.settings, key, HALF)
    under_way = shown(driver, export)
    exporting.finish(driver.db, driver.settings, key, written(driver, key))

    assert (under_way.state, under_way.progress, under_way.phase) == ("running", 0.5, "writing")
    ended = shown(driver, export)
    assert (ended.state, ended.progress, ended.bytes, ended.parity) == ("succeeded", 1, 3, PROOF)
    folder = export_folder(driver.settings.home, job_id, export.id)
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_a_failed_proof_fails_the_export_and_is_stored(driver: Driver, job_id: str):
    export = asked(driver, job_id)
    key = claimed(driver)
    job = driver.job(job_id)
    bad = PROOF.model_copy(update={"greedy_agreement": 0.5, "problems": ("it differs",)})

    exporting.finish(driver.db, driver.settings, key, written(driver, key, bad))

    ended = shown(driver, export)
    assert ended.error is not None
    assert (ended.state, ended.error.code, ended.parity) == ("failed", "parity_failed", bad)
    assert "it differs" in ended.error.message
    assert not export_folder(driver.settings.home, job_id, export.id).exists()
    assert driver.job(job_id) == job
    with pytest.raises(StateConflict, match="failed"):
        exports.files(driver.db, driver.settings, DEFAULT_PROJECT, job_id, export.id)


def test_a_worker_whose_export_was_taken_over_writes_nothing(driver: Driver, job_id: str):
    export = asked(driver, job_id)
    stale = claimed(driver)
    exporting.give_back(driver.db, stale, crashed="its process ended")
    current = claimed(driver)

    for write in (
        lambda: exporting.renew(driver.db, driver.settings, stale, HALF),
        lambda: exporting.finish(driver.db, driver.settings, stale, written(driver, stale)),
        lambda: exporting.fail(driver.db, stale, "x", "x"),
    ):
        with pytest.raises(Fenced):
            write()
    exporting.give_back(driver.db, stale, crashed="late")

    assert shown(driver, export).state == "running"
    assert not export_folder(driver.settings.home, job_id, export.id).exists()
    assert not exporting.renew(driver.db, driver.settings, current, HALF)


def test_a_try_that_ends_between_the_rename_and_the_commit_is_done_again(
    driver: Driver, job_id: str, monkeypatch: pytest.MonkeyPatch
):
    export = asked(driver, job_id)
    first = claimed(driver)
    monkeypatch.setattr(failpoints, "_visits", Counter())
    monkeypatch.setenv(failpoints.VARIABLE, "export.renamed=raise:EIO@1")
    with pytest.raises(OSError, match=r"export\.renamed"):
        exporting.finish(driver.db, driver.settings, first, written(driver, first))
    folder = export_folder(driver.settings.home, job_id, export.id)
    (folder / "of the first try.txt").write_text("left")
    between = shown(driver, export).state

    exporting.give_back(driver.db, first, crashed="its worker died")
    second = claimed(driver)
    exporting.finish(driver.db, driver.settings, second, written(driver, second))

    assert between == "running"
    assert shown(driver, export).state == "succeeded"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_an_export_that_kills_its_workers_fails_at_the_third(driver: Driver, job_id: str):
    export = asked(driver, job_id)
    dead = driver.other_worker()

    for tries in (1, 2, 3):
        claimed(driver, dead)
        assert exporting.settle_dead(driver.db, driver.settings, also_expired=True) == []
        driver.sql("UPDATE exports SET lease_expires_at = '2020-01-01 00:00:00'")
        assert exporting.settle_dead(driver.db, driver.settings, also_expired=False) == []
        assert exporting.settle_dead(driver.db, driver.settings, also_expired=True) == [export.id]
        assert shown(driver, export).tries == tries

    ended = shown(driver, export)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "export_crashed")


def test_a_worker_that_drains_costs_no_try(driver: Driver, job_id: str):
    export = asked(driver, job_id)

    exporting.give_back(driver.db, claimed(driver), crashed=None)

    again = shown(driver, export)
    assert (again.state, again.tries, again.finished_at) == ("queued", 0, None)


def test_a_cancelled_export_ends_cancelled_and_in_no_other_way(driver: Driver, job_id: str):
    queued, running = asked(driver, job_id, checkpoint=10), asked(driver, job_id)
    arguments = (driver.db, driver.settings, DEFAULT_PROJECT, job_id)
    assert exports.cancel(*arguments, queued.id).state == "cancelled"
    key = claimed(driver)

    assert exports.cancel(*arguments, running.id).cancel_requested
    assert exporting.renew(driver.db, driver.settings, key, HALF)
    with pytest.raises(Fenced):
        exporting.finish(driver.db, driver.settings, key, written(driver, key))
    exporting.cancelled(driver.db, key)

    assert shown(driver, running).state == "cancelled"
    assert not export_folder(driver.settings.home, job_id, running.id).exists()
    with pytest.raises(StateConflict, match="it is cancelled"):
        exports.cancel(*arguments, running.id)


def test_a_cancelled_export_whose_worker_dies_is_not_begun_again(driver: Driver, job_id: str):
    export = asked(driver, job_id)
    key = claimed(driver)
    exports.cancel(driver.db, driver.settings, DEFAULT_PROJECT, job_id, export.id)

    exporting.give_back(driver.db, key, crashed="its process ended")

    assert shown(driver, export).state == "cancelled"
    assert exporting.claim(driver.db, driver.settings, driver.worker()) is None


def test_an_export_that_is_deleted_while_it_is_made_leaves_nothing(driver: Driver, job_id: str):
    export = asked(driver, job_id)
    key = claimed(driver)

    exports.delete(driver.db, driver.settings, DEFAULT_PROJECT, job_id, export.id)

    with pytest.raises(Fenced):
        exporting.renew(driver.db, driver.settings, key, HALF)
    with pytest.raises(Fenced):
        exporting.finish(driver.db, driver.settings, key, written(driver, key))
    assert not export_folder(driver.settings.home, job_id, export.id).exists()
    with pytest.raises(NotFound):
        shown(driver, export)


def test_a_job_that_is_deleted_takes_its_running_exports_along(driver: Driver, job_id: str):
    asked(driver, job_id)
    key = claimed(driver)
    result = written(driver, key)

    jobs.delete(driver.db, driver.settings, DEFAULT_PROJECT, job_id)

    with pytest.raises(Fenced):
        exporting.renew(driver.db, driver.settings, key, HALF)
    work_folder(driver.settings.home, job_id, key.id, key.fence).mkdir(parents=True)
    with pytest.raises((Fenced, OSError)):
        exporting.finish(driver.db, driver.settings, key, result)
    assert not export_folder(driver.settings.home, job_id, key.id).exists()


def test_a_checkpoint_that_is_being_exported_stays(driver: Driver):
    job_id = driver.submit(training={"save_total_limit": 2})
    run = driver.started()
    driver.train(run, 1, 15, save_every=5)
    export = asked(driver, job_id, checkpoint=5)

    runs.retire(driver.db, driver.settings, run)
    with pytest.raises(InUse, match="is being exported"):
        checkpoints.delete(driver.db, driver.settings, DEFAULT_PROJECT, job_id, "5")
    kept = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "5")
    exports.cancel(driver.db, driver.settings, DEFAULT_PROJECT, job_id, export.id)
    runs.retire(driver.db, driver.settings, run)

    assert kept.status == "committed"
    with pytest.raises(NotFound):
        checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "5")


def test_without_a_final_adapter_the_newest_checkpoint_is_exported(driver: Driver):
    job_id, _ = driver.in_state(JobState.PAUSED)

    export = asked(driver, job_id)

    assert (export.step, export.checkpoint.partition("-")[0]) == (5, "ckpt")
    with pytest.raises(NotFound, match="no final adapter"):
        asked(driver, job_id, checkpoint="final")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"export_format": "adapter", "dtype": "float16"}, "dtype"),
        ({"export_format": "merged", "dtype": "q8_0"}, "dtype"),
        ({"export_format": "gguf", "dtype": "float32"}, "dtype"),
        ({"export_format": "adapter", "base": "original"}, "base"),
        ({"export_format": "merged", "base": "dequantized"}, "base"),
        ({"export_format": "merged", "checkpoint": "newest"}, "checkpoint"),
    ],
)
def test_choices_that_cannot_be_are_refused_by_name(
    driver: Driver, job_id: str, body: dict[str, Any], param: str
):
    with pytest.raises(InvalidInput) as caught:
        asked(driver, job_id, **body)

    assert caught.value.param == param


def test_gguf_of_another_architecture_is_refused_with_those_that_can(driver: Driver, job_id: str):
    config = driver.settings.models_folder / "tiny" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "GPT2LMHeadModel"))

    with pytest.raises(InvalidInput, match="possible: LlamaForCausalLM") as caught:
        asked(driver, job_id, "gguf")

    assert caught.value.code == "gguf_unsupported"


def test_an_export_that_waits_says_for_what(driver: Driver, job_id: str):
    driver.sql("UPDATE workers SET ended_at = CURRENT_TIMESTAMP")

    export = asked(driver, job_id)

    assert "lorad worker" in (export.waiting_for or "")


def test_a_forgotten_export_is_rung_for(driver: Driver, job_id: str):
    asked(driver, job_id)
    doorbell = driver.outside.doorbell
    driver.sql("UPDATE exports SET rung_at = '2020-01-01 00:00:00'")

    rung = [exporting.ring_for_forgotten(driver.db, driver.settings, doorbell) for _ in range(2)]

    assert rung == [True, False]


def test_the_reconciler_puts_back_what_a_dead_process_had(driver: Driver, job_id: str):
    export = asked(driver, job_id)
    here = exporting.workers.this_machine()
    claimed(driver, driver.other_worker(machine=here, pid=2**22 - 1))

    outside = driver.outside
    reconcile.Reconciler(driver.db, driver.settings, outside.doorbell, outside.stream).run_once()

    assert shown(driver, export).state == "queued"


def test_the_sweeper_removes_folders_that_no_export_knows(driver: Driver, job_id: str):
    export = asked(driver, job_id)
    key = claimed(driver)
    exporting.finish(driver.db, driver.settings, key, written(driver, key))
    parent = export_folder(driver.settings.home, job_id, export.id).parent
    for name in ("exp-0199c2f4a1b3e07d5c2f9a81", f".tmp-{export.id}-2", ".trash-x"):
        (parent / name).mkdir()
    for path in (*parent.rglob("*"), *parent.iterdir()):
        os.utime(path, (0, 0))

    sweep.sweep_jobs(driver.db, driver.settings)

    assert [path.name for path in parent.iterdir()] == [export.id]
