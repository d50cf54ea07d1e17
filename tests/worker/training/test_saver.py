"""Checkpoints written beside the training are the ones that would have been written at once."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.domain.runs import EVENTS_FILE
from tests.training_runs import CHAT_ROWS, Attempt, Workplace
from worker import examiner
from worker.training import run as training
from worker.training import saver
from worker.training.commit import Committed
from worker.training.prepare import prepare
from worker.training.reporting import EventLog
from worker.training.saver import Saver

DONE = Committed("0" * 64, 1)


def test_what_is_told_of_a_write_comes_after_it_and_from_the_training_thread():
    beside, gate, told = Saver(is_beside=True), threading.Event(), []

    def write() -> Committed:
        gate.wait(10)
        return DONE

    beside.save(write, lambda made: told.append((made, threading.current_thread())))
    beside.poll()
    assert told == []
    gate.set()
    beside.settle()

    assert told == [(DONE, threading.main_thread())]
    beside.settle()
    assert len(told) == 1


def test_a_second_write_waits_for_the_first():
    beside, order = Saver(is_beside=True), list[str]()

    for name in ("first", "second"):
        beside.save(lambda: DONE, lambda _, name=name: order.append(name))
        assert order == ["first"][: name == "second"]
    beside.settle()

    assert order == ["first", "second"]


def test_a_write_that_failed_is_told_to_the_training():
    beside = Saver(is_beside=True)

    def write() -> Committed:
        raise OSError(28, "No space left on device")

    beside.save(write, lambda _: pytest.fail("told of a write that failed"))

    with pytest.raises(OSError, match="No space left"):
        beside.settle()


def test_a_copy_keeps_its_values_when_the_original_changes():
    tensor = torch.ones(3)

    copies = saver.copy_to_host({"a": tensor})
    tensor.zero_()
    copies.arrived()

    assert torch.equal(copies.tensors["a"], torch.ones(3))


def test_a_run_that_saves_beside_leaves_the_same_checkpoints(workplace: Workplace):
    arguments = {"training": {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2}}
    at_once = workplace.train(**arguments)
    run = workplace.run_file(rows=CHAT_ROWS, **arguments)

    with examiner.forked() as outside, EventLog(run.attempt_folder / EVENTS_FILE) as log:
        session = replace(prepare(run, log), saver=Saver(is_beside=True))
        training._run(session, log, lambda: None, outside)

    beside = Attempt.of(run, 0)
    assert beside.kinds.count("checkpoint") == 2
    assert beside.kinds[-1] == "finished"
    for step in (2, 4):
        ours, theirs = (a.checkpoint(step).folder for a in (beside, at_once))
        assert contents(ours) == contents(theirs)


def contents(folder: Path) -> dict[str, bytes]:
    names = ("adapter_model.safetensors", "optimizer.safetensors")
    return {name: (folder / name).read_bytes() for name in names}
