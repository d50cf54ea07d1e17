"""The training process from outside: its pipe, its lock, its exit codes, its death."""

import fcntl
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.domain.runs import EXIT_BUSY, EXIT_DISK_FULL, RUN_FILE
from tests.training_runs import ROOT, Attempt, TrainerProcess, Workplace, run_in_process
from worker import trainer

TRAINING = {"per_device_train_batch_size": 2, "max_steps": 6, "save_steps": 2}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1}
ENDLESS = {"per_device_train_batch_size": 2, "max_steps": 1_000_000}

_PRELOAD = """
import json, sys, threading
from worker import trainer
trainer.preload()
import torch
print(json.dumps({
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    "threads": threading.active_count(),
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.fixture
def workplace(tmp_path: Path, tiny_llama: Path) -> Workplace:
    return Workplace(tmp_path, tiny_llama)


def test_a_preloaded_process_has_all_a_trainer_needs_and_nothing_that_may_not_be_there():
    done = subprocess.run(
        [sys.executable, "-c", _PRELOAD], cwd=ROOT, capture_output=True, text=True, check=True
    )

    found = json.loads(done.stdout)
    loaded = set(found["loaded"])
    assert {"torch", "transformers", "peft", "safetensors"} <= loaded
    assert not loaded & {"bitsandbytes", "celery", "fastapi", "sqlalchemy", "redis"}
    assert found["threads"] == 1
    assert found["cuda"] is False


def test_the_end_of_the_pipe_ends_the_trainer_at_once(workplace: Workplace):
    process = TrainerProcess(workplace.run_file(training=ENDLESS))
    process.wait_for_step(1)

    process.hang_up()
    attempt = process.wait(seconds=5)

    assert attempt.exit_code == 2
    assert attempt.kinds[-1] == "step"


def test_a_pause_on_the_pipe_saves_and_stops(workplace: Workplace):
    process = TrainerProcess(workplace.run_file(training=ENDLESS))
    process.wait_for_step(2)

    process.send('{"stop": "pause"}')
    attempt = process.wait()

    assert attempt.exit_code == 0
    assert attempt.kinds[-2:] == ["checkpoint", "stopped"]
    assert attempt.checkpoint(attempt.events[-1].step)


def test_a_killed_trainer_is_continued_to_the_same_adapter(workplace: Workplace):
    whole = workplace.train(lora=LORA, training=TRAINING)

    killed = TrainerProcess(
        workplace.run_file(lora=LORA, training=TRAINING), failpoints="trainer.step=kill@4"
    ).wait()
    rest = workplace.train(lora=LORA, training=TRAINING, resume=killed.checkpoint(2))

    assert killed.exit_code == -signal.SIGKILL
    assert killed.kinds == ["ready", "step", "step", "checkpoint", "step"]
    assert killed.losses | rest.losses == whole.losses
    assert rest.final_adapter == whole.final_adapter


def test_a_held_lock_is_reported_as_busy_and_not_as_a_failure(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(trainer, "_LOCK_WAIT_SECONDS", 0.1)
    run = workplace.run_file(training=TRAINING)

    with run.lock_file.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        exit_code = run_in_process(run)

    attempt = Attempt.of(run, exit_code)
    assert attempt.exit_code == EXIT_BUSY
    assert attempt.kinds == []
    assert "held by another trainer" in capfd.readouterr().err


def test_a_trainer_waits_for_a_lock_that_is_given_back(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
):
    run = workplace.run_file(training={**TRAINING, "max_steps": 1, "warmup_steps": 0})
    lock = run.lock_file.open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    monkeypatch.setattr("worker.trainer.time.sleep", lambda _: lock.close())

    assert run_in_process(run) == 0


def test_the_lock_is_held_while_training(workplace: Workplace):
    from app.domain.runs import EVENTS_FILE
    from worker.training.reporting import EventLog

    run = workplace.run_file(training={**TRAINING, "max_steps": 1, "warmup_steps": 0})
    with (
        EventLog(run.attempt_folder / EVENTS_FILE),
        trainer._exclusive(run.lock_file),
        run.lock_file.open("rb") as lock,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_attempt_is_not_run_twice(workplace: Workplace, capfd: pytest.CaptureFixture[str]):
    run = workplace.run_file(training={**TRAINING, "max_steps": 1, "warmup_steps": 0})
    run_in_process(run)

    assert run_in_process(run) == 2
    assert "this attempt was started before" in capfd.readouterr().err


def test_an_unreadable_run_file_is_exit_code_2_with_a_traceback(
    workplace: Workplace, capfd: pytest.CaptureFixture[str]
):
    run = workplace.run_file(training=TRAINING)
    (run.attempt_folder / RUN_FILE).write_text("{}")

    assert run_in_process(run) == 2
    assert "ValidationError" in capfd.readouterr().err


def test_a_failure_that_may_not_repeat_is_exit_code_2_without_a_failed_event(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LORAD_FAILPOINTS", "trainer.step=raise:EIO")

    attempt = workplace.train(training=TRAINING)

    assert attempt.exit_code == 2
    assert attempt.kinds == ["ready"]
    assert "Input/output error" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_is_a_failure_with_advice(error: Exception):
    failure = trainer._deterministic(error, is_limited=False)

    assert failure is not None
    assert failure.code == "out_of_memory"
    assert "per_device_train_batch_size" in failure.message


def test_a_disk_that_is_full_at_the_start_is_told_by_the_exit_code(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LORAD_FAILPOINTS", "trainer.event.write=raise:ENOSPC")

    attempt = workplace.train(training=TRAINING)

    assert attempt.exit_code == EXIT_DISK_FULL
    assert attempt.kinds == []


def test_a_cancel_is_not_taken_back_by_a_later_pause(tmp_path: Path):
    import os

    reader, writer = os.pipe()
    control = trainer.Control(reader)
    # Read here and not in a thread, up to a line that ends the reading.
    os.write(writer, b'{"stop": "cancel"}\n{"stop": "pause"}\nnonsense\n')

    with pytest.raises(ValueError, match="validation error"):
        control._read()

    assert control.stop_requested() == "cancel"
    os.close(reader)
    os.close(writer)
