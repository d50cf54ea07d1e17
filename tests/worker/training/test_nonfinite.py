"""Steps that are not finite: never applied, and told with the lines that they trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.errors import NonFiniteStep
from app.domain.events import NoticeEvent
from app.domain.runs import EVENTS_FILE
from tests.training_runs import CHAT_ROWS, Attempt, Workplace
from tests.worker.training.poison import poisoned
from worker.training import nonfinite
from worker.training.prepare import prepare
from worker.training.reporting import EventLog
from worker.training.run import take_step
from worker.training.sampler import Sampler

SEED = 7
TRAINING: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 7, "save_steps": 1}
SKIP: dict[str, Any] = {"monitoring": {"on_nonfinite": "skip"}}
ORDER = Sampler(num_units=len(CHAT_ROWS), units_per_step=2, seed=SEED)


def lines_of(step: int) -> list[int]:
    return [unit + 1 for unit in ORDER.units_of(step)]


def place(folder: Path, tiny_llama: Path, *, bad_step: int) -> Workplace:
    """Return a workplace whose model cannot stand a row of step `bad_step` of each epoch."""
    row = CHAT_ROWS[ORDER.units_of(bad_step)[0]]
    model = poisoned(tiny_llama, folder / "model", row=row, rows=CHAT_ROWS)
    return Workplace(folder, model)


@pytest.fixture
def third_is_bad(tmp_path: Path, tiny_llama: Path) -> Workplace:
    return place(tmp_path, tiny_llama, bad_step=3)


def notice(attempt: Attempt, code: str) -> NoticeEvent:
    (found,) = (e for e in attempt.events if isinstance(e, NoticeEvent) and e.code == code)
    return found


def test_by_default_the_job_fails_with_step_lines_and_the_checkpoint_before(
    third_is_bad: Workplace,
):
    attempt = third_is_bad.train(training=TRAINING)

    lines = ", ".join(map(str, lines_of(3)))
    assert (attempt.exit_code, attempt.failed.code, attempt.failed.step) == (1, "nonfinite_step", 3)
    assert "step 3 is not finite: loss nan" in attempt.failed.message
    assert f"lines {lines}." in attempt.failed.message
    assert "The checkpoint of step 2 is kept" in attempt.failed.message
    assert "--from 2" in attempt.failed.message
    assert notice(attempt, "nonfinite_step").data == {"lines": lines_of(3), "num_lines": 2}
    assert sorted(attempt.losses) == [1, 2]
    assert sorted(each.name for each in attempt.folder.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_a_step_that_is_skipped_is_told_and_counted_and_changes_no_weight(
    third_is_bad: Workplace,
):
    attempt = third_is_bad.train(training={**TRAINING, "logging_steps": 100}, **SKIP)

    assert attempt.exit_code == 0
    told = notice(attempt, "nonfinite_skipped")
    assert told.step == 3
    assert told.data == {
        "num_skipped": 1,
        "skipped_in_a_row": 1,
        "lines": lines_of(3),
        "num_lines": 2,
    }
    # Only the first and the last step are logged, and the one that was skipped.
    assert [(row.step, row.metrics.loss is None) for row in attempt.steps] == [
        (1, False),
        (3, True),
        (7, False),
    ]
    before, after = (
        (attempt.checkpoint(step).folder / "adapter_model.safetensors").read_bytes()
        for step in (2, 3)
    )
    assert before == after


@pytest.mark.parametrize("bad_step", [1, 3])
def test_resuming_after_a_skipped_step_changes_nothing(
    tmp_path: Path, tiny_llama: Path, bad_step: int
):
    keys = {
        "training": TRAINING,
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1},
        **SKIP,
    }
    workplace = place(tmp_path, tiny_llama, bad_step=bad_step)
    whole = workplace.train(**keys)

    stopped = workplace.train_until(bad_step, "pause", **keys)
    rest = workplace.train(**keys, resume=stopped.checkpoint(bad_step))

    assert whole.losses[bad_step] is None
    assert stopped.losses | rest.losses == whole.losses
    assert rest.final_adapter == whole.final_adapter
    assert rest.ready.num_skipped_steps == 1


def test_too_many_skipped_steps_in_a_row_fail_the_job(tmp_path: Path, tiny_llama: Path):
    workplace = place(tmp_path, tiny_llama, bad_step=1)
    bad = CHAT_ROWS[ORDER.units_of(1)[0]]

    attempt = workplace.train(
        rows=[bad] * 8,
        training=TRAINING,
        monitoring={"on_nonfinite": "skip", "max_nonfinite_in_a_row": 2},
    )

    assert (attempt.failed.code, attempt.failed.step) == ("nonfinite_step", 3)
    assert "2 steps in a row were skipped" in attempt.failed.message
    assert attempt.losses == {1: None, 2: None}


def test_steps_skipped_now_and_then_do_not_fail_the_job(third_is_bad: Workplace):
    attempt = third_is_bad.train(
        training={**TRAINING, "max_steps": 14},
        monitoring={"on_nonfinite": "skip", "max_nonfinite_in_a_row": 1},
    )

    skipped = [step for step, loss in attempt.losses.items() if loss is None]
    assert attempt.exit_code == 0
    assert len(skipped) == 3  # one in each of the three epochs


def test_weights_that_an_update_broke_are_neither_saved_nor_skipped_over(workplace: Workplace):
    run = workplace.run_file(training=TRAINING, **SKIP)
    with EventLog(run.attempt_folder / EVENTS_FILE) as log:
        session = prepare(run, log)
        take_step(session, log)
        with torch.no_grad():
            session.parameters[0][0, 0] = torch.inf

        with pytest.raises(NonFiniteStep, match="the update of step 1 left weights"):
            nonfinite.may_save(session)
        with pytest.raises(NonFiniteStep, match="no later step could be any better"):
            take_step(session, log)
