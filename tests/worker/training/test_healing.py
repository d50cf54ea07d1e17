"""Out of memory: smaller micro-batches, the same steps, and what else the run does is the same."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain import failpoints
from app.domain.events import CertificateEvent, NoticeEvent
from tests.training_runs import ROOT, Attempt, Workplace
from worker.training import certify
from worker.training.batch import Batch
from worker.training.session import Session

STEPS = {"max_steps": 6, "per_device_train_batch_size": 4, "save_steps": 3}
DROPOUT = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
PLAIN = {**DROPOUT, "lora_dropout": 0.0}


@pytest.fixture(autouse=True)
def no_earlier_visits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failpoints, "_visits", Counter())
    monkeypatch.delenv(failpoints.VARIABLE, raising=False)


@pytest.fixture
def workplace(tmp_path: Path, tiny_llama: Path) -> Workplace:
    return Workplace(tmp_path, tiny_llama)


def run_out_at(monkeypatch: pytest.MonkeyPatch, visit: int | None) -> None:
    """Let memory run out after the backward pass of the n-th micro-batch; None: at every one."""
    at = "" if visit is None else f"@{visit}"
    monkeypatch.setattr(failpoints, "_visits", Counter())
    monkeypatch.setenv(failpoints.VARIABLE, f"trainer.micro_batch=raise:MEMORY{at}")


def healed(attempt: Attempt) -> list[NoticeEvent]:
    return [e for e in attempt.events if isinstance(e, NoticeEvent) and e.code == "healed"]


def test_a_step_that_runs_out_of_memory_is_done_again_in_halves_with_the_same_losses(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
):
    untouched = workplace.train(training=STEPS, lora=PLAIN)
    run_out_at(monkeypatch, 2)

    attempt = workplace.train(training=STEPS, lora=PLAIN)

    (notice,) = healed(attempt)
    assert notice.data == {
        "at_step": 2,
        "from_micro_batch_size": 4,
        "to_micro_batch_size": 2,
        "rows_per_step": 4,
    }
    assert attempt.losses == pytest.approx(untouched.losses, rel=1e-5)
    assert [e.metrics.batch_sha for e in attempt.steps] == [
        e.metrics.batch_sha for e in untouched.steps
    ]


def test_a_healed_run_that_is_resumed_is_the_healed_run_to_the_last_bit(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
):
    run_out_at(monkeypatch, 2)
    whole = workplace.train(training=STEPS, lora=DROPOUT)
    monkeypatch.delenv(failpoints.VARIABLE)

    rest = workplace.train(training=STEPS, lora=DROPOUT, resume=whole.checkpoint(3))

    assert len(healed(whole)) == 1
    assert healed(rest) == []  # the size is saved, memory does not have to run out again
    assert rest.final_adapter == whole.final_adapter
    assert rest.losses == {step: whole.losses[step] for step in (4, 5, 6)}


def test_what_a_failed_try_left_behind_does_not_reach_the_step(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
):
    # With accumulation the second micro-batch fails: the first one's gradient is there already, and
    # dropout has drawn. Halved from the start, nothing fails and the bits must be the same.
    training = {**STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run_out_at(monkeypatch, 1)
    early = workplace.train(training=training, lora=DROPOUT)
    run_out_at(monkeypatch, 2)

    late = workplace.train(training=training, lora=DROPOUT)

    assert len(healed(early)) == len(healed(late)) == 1
    assert late.final_adapter == early.final_adapter


def test_one_row_that_does_not_fit_fails_with_numbers(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
):
    run_out_at(monkeypatch, None)

    attempt = workplace.train(training=STEPS, dataset={"max_length": 64})

    assert attempt.exit_code == 1
    assert [e.data["to_micro_batch_size"] for e in healed(attempt)] == [2, 1]
    assert attempt.failed.code == "out_of_memory"
    assert "max_length (now 64, the longest row here has" in attempt.failed.message
    assert "gradient_checkpointing" in attempt.failed.message
    assert [event.kind for event in attempt.events[-2:]] == ["memory", "failed"]


def test_the_probe_changes_nothing(workplace: Workplace):
    # RLIMIT_DATA of this process is set far above what it has.
    free = workplace.train(training=STEPS, lora=DROPOUT)

    probed = workplace.train(training=STEPS, lora=DROPOUT, resources={"max_memory_gb": 1000})

    assert "probe" in [phase.phase for phase in memory_of(probed)["phases"]]
    assert "probe" not in [phase.phase for phase in memory_of(free)["phases"]]
    assert probed.final_adapter == free.final_adapter
    assert probed.losses == free.losses


def test_a_limit_below_any_need_fails_before_the_model_is_loaded(workplace: Workplace):
    run = workplace.run_file(training=STEPS, resources={"max_memory_gb": 0.1})

    exit_code = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, str(run.attempt_folder)], cwd=ROOT, check=False
    ).returncode
    attempt = Attempt.of(run, exit_code)

    assert attempt.failed.code == "out_of_memory"
    assert "resources.max_memory_gb = 0.10 is less than a run needs" in attempt.failed.message
    assert "weights 0." in attempt.failed.message
    assert "ready" not in attempt.kinds


def test_real_memory_that_runs_out_is_healed(workplace: Workplace):
    # A row takes about 5 MB, and what is there besides varies by tens of MB: the limit is far from
    # both what one row needs and what 64 need.
    rows = [{"prompt": "word " * 1500, "completion": "a"} for _ in range(64)]
    run = workplace.run_file(
        rows=rows,
        row_format="prompt-completion",
        training={**STEPS, "max_steps": 2, "per_device_train_batch_size": 64},
    )
    program = _IN_A_PROCESS.replace("LIMIT = None", f"LIMIT = {240 << 20}")

    done = subprocess.run(
        [sys.executable, "-c", program, str(run.attempt_folder)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    attempt = Attempt.of(run, done.returncode)

    assert done.returncode == 0, done.stderr
    assert healed(attempt)
    assert len(attempt.steps) == 2


@pytest.mark.parametrize("longest_that_fits", [64, 0])
def test_a_certificate_that_runs_out_of_memory_is_made_of_shorter_rows(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, longest_that_fits: int
):
    rows = [{"prompt": "word " * num_words, "completion": "a"} for num_words in (90, 8, 120, 6)]
    whole, sizes = certify._losses, []

    def losses(session: Session, batches: Sequence[Batch]) -> list[float]:
        assert not session.optimizer.state
        assert all(parameter.grad is None for parameter in session.parameters)
        sizes.append([batch.input_ids_BT.numel() for batch in batches])
        if max(sizes[-1]) > longest_that_fits:
            raise torch.OutOfMemoryError
        return whole(session, batches)

    monkeypatch.setattr(certify, "_losses", losses)

    attempt = workplace.train(rows=rows, row_format="prompt-completion", training=STEPS)

    if longest_that_fits == 0:
        assert (attempt.exit_code, attempt.failed.code) == (1, "out_of_memory")
        assert [len(tried) for tried in sizes] == [4, 3, 2, 1]
        return
    (event,) = (e for e in attempt.events if isinstance(e, CertificateEvent))
    assert attempt.exit_code == 0
    assert event.certificate.status == "passed"
    assert event.certificate.num_rows == 2
    assert [len(tried) for tried in sizes] == [4, 3, 2]


# Runs an attempt; with LIMIT, memory beside what is in use when the session is ready is limited.
_IN_A_PROCESS = """
import os, resource, sys
from pathlib import Path
from worker import trainer
from worker.training import healing, limits, memory

LIMIT = None
trainer.preload()
if LIMIT is not None:
    make_room = healing.make_room

    def with_limit(session, log):
        limit = memory.data_bytes() + LIMIT
        session.memory.limit_bytes = limit
        limits.enforce(limit, session.device)
        make_room(session, log)

    healing.make_room = with_limit
reader, writer = os.pipe()
sys.exit(trainer.main(Path(sys.argv[1]), reader))
"""


def memory_of(attempt: Attempt) -> Any:
    return [e.memory for e in attempt.events if e.kind == "memory"][-1].__dict__
