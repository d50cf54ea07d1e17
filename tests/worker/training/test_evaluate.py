"""Evaluation measures what the plain model says, disturbs nothing, and finds the best step."""

import json
import random
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from app.domain.evaluations import Evaluation
from app.domain.events import CheckpointEvent, EvaluationEvent
from app.domain.runs import EVENTS_FILE
from tests.training_runs import Attempt, Workplace, read_events
from worker.training import evaluate, state
from worker.training.adapters import without_peft_warnings
from worker.training.prepare import prepare
from worker.training.reporting import EventLog
from worker.training.session import Session

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1}
HELD_OUT = {"val_size": 3}
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
}
# So large that the loss on the held-out rows is lowest after the first step.
DIVERGING = {**TRAINING, "learning_rate": 2.0, "max_steps": 9, "eval_steps": 1}


def train(workplace: Workplace, **arguments: Any) -> Attempt:
    return workplace.train(**{"lora": LORA, "dataset": HELD_OUT, **arguments})


@contextmanager
def session_of(workplace: Workplace, **arguments: Any) -> Generator[tuple[Session, EventLog]]:
    """Prepare a run that is at its last step, so that an evaluation is due."""
    run = workplace.run_file(**{"lora": LORA, "dataset": HELD_OUT, **arguments})
    with EventLog(run.attempt_folder / EVENTS_FILE) as log:
        session = prepare(run, log)
        session.progress.step = session.total_steps
        yield session, log


def measured(session: Session, log: EventLog) -> Evaluation:
    found = evaluate.when_due(session, log)
    assert found is not None
    return found


def evaluations(attempt: Attempt) -> list[Evaluation]:
    return [event.evaluation for event in attempt.events if isinstance(event, EvaluationEvent)]


def saved(attempt: Attempt) -> dict[int, float | None]:
    return {e.step: e.eval_loss for e in attempt.events if isinstance(e, CheckpointEvent)}


def plain_evaluation(model_folder: Path, adapter: Path, session: Session) -> tuple[float, float]:
    """Return loss and accuracy by plain transformers and PEFT, row by row, from full logits."""
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with without_peft_warnings():
        model = PeftModel.from_pretrained(base, adapter).eval()
    loss, right, count = 0.0, 0, 0
    for row in session.data.eval_rows:
        ids = torch.from_numpy(np.array(row.ids, np.int64))
        is_target = torch.from_numpy(np.array(row.is_target[1:]))
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1][is_target]
        labels = ids[1:][is_target]
        loss += F.cross_entropy(logits.double(), labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return loss / count, right / count


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Attempt:
    """Return a run that was stopped early; its evaluations get worse from the first on."""
    workplace = Workplace(tmp_path_factory.mktemp("diverged"), tiny_llama)
    return train(workplace, training={**DIVERGING, "early_stopping_patience": 2})


def test_loss_and_accuracy_are_those_of_the_plain_model(workplace: Workplace):
    # Trained far enough that some tokens are right, with a dropout that would be seen.
    arguments: dict[str, Any] = {
        "lora": {**LORA, "r": 16, "lora_dropout": 0.5, "target_modules": "all-linear"},
        "training": {**TRAINING, "max_steps": 12, "learning_rate": 3e-2},
    }
    attempt = train(workplace, **arguments)
    with session_of(workplace, **arguments) as (session, _):
        loss, accuracy = plain_evaluation(workplace.model_folder, attempt.folder / "final", session)
        num_rows = len(session.data.eval_rows)

    (found,) = evaluations(attempt)
    assert found.eval_loss == pytest.approx(loss, rel=1e-5)
    assert found.token_accuracy == accuracy
    assert 0 < accuracy < 1
    assert (found.num_rows, found.step, found.is_best) == (num_rows, 12, True)


def test_every_token_weighs_the_same_however_the_rows_are_divided(workplace: Workplace):
    found: list[Evaluation] = []
    for rows_at_once in (1, 2, 9):
        with session_of(workplace, dataset={"val_size": 6}, training=TRAINING) as (session, log):
            session.progress.micro_batch_size = rows_at_once  # as if memory had run out
            longest = max(len(row.ids) for row in session.data.eval_rows)
            parts = list(
                evaluate._micro_batches(session.data.eval_rows, most_rows=session.micro_batch_size)
            )
            found.append(measured(session, log))
        assert [row.line for part in parts for row in part] == [
            row.line for row in session.data.eval_rows
        ]
        assert max(sum(len(row.ids) for row in part) for part in parts) <= rows_at_once * longest
        assert (len(parts) == 1) is (rows_at_once == 9)

    assert [each.eval_loss for each in found] == [pytest.approx(found[0].eval_loss, rel=1e-6)] * 3
    assert len({(each.token_accuracy, each.num_target_tokens) for each in found}) == 1


def generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), state.capture_host_rng()


def test_no_random_generator_moves_even_where_a_model_draws(workplace: Workplace):
    def draw(*_: object) -> None:
        draws.append((torch.rand(()), random.random(), np.random.rand()))

    draws: list[object] = []
    with session_of(workplace, training=TRAINING) as (session, log):
        session.adapted.base.register_forward_pre_hook(draw)
        session.adapted.base.get_decoder().register_forward_pre_hook(draw)
        before = generators()
        evaluate.when_due(session, log)

    assert draws
    assert generators() == before


def test_training_goes_on_in_training_mode_without_gradients_left(workplace: Workplace):
    with session_of(workplace, training=TRAINING) as (session, log):
        evaluate.when_due(session, log)

    modules = list(session.adapted.model.modules())
    assert all(module.training for module in modules)
    assert all(weight.grad is None for weight in session.adapted.model.parameters())


def test_a_run_with_evaluations_is_to_the_last_bit_the_run_without(workplace: Workplace):
    without = train(workplace, training=TRAINING)
    often = train(workplace, training={**TRAINING, "eval_steps": 1})

    assert [each.step for each in evaluations(without)] == [4]
    assert [each.step for each in evaluations(often)] == [1, 2, 3, 4]
    assert often.losses == without.losses
    assert often.final_adapter == without.final_adapter
    assert tensors_sha256(often, 4) == tensors_sha256(without, 4)


def tensors_sha256(attempt: Attempt, step: int) -> str:
    text = (attempt.folder / f"checkpoint-{step}" / "training_state.json").read_text()
    return json.loads(text)["tensors_sha256"]


def test_evaluations_come_every_eval_steps_and_at_the_end(workplace: Workplace):
    attempt = train(workplace, training={**TRAINING, "max_steps": 5, "eval_steps": 2})

    assert [each.step for each in evaluations(attempt)] == [2, 4, 5]


def test_without_rows_to_evaluate_on_there_is_no_evaluation(workplace: Workplace):
    attempt = train(workplace, dataset={}, training=TRAINING)

    assert evaluations(attempt) == []
    assert saved(attempt) == {4: None}


def test_the_best_step_so_far_is_saved_with_its_loss(workplace: Workplace):
    attempt = train(workplace, training={**TRAINING, "max_steps": 3, "eval_steps": 1})

    found = evaluations(attempt)
    best = [each.step for each in found if each.is_best]
    assert best[0] == 1
    assert saved(attempt) == {
        each.step: each.eval_loss for each in found if each.step in {*best, 3}
    }
    lowest = min(found, key=lambda each: each.eval_loss or 0)
    assert best[-1] == lowest.step


def test_patience_ends_a_run_that_gets_worse(diverged: Attempt):
    found = evaluations(diverged)

    assert [each.is_best for each in found] == [True, False, False]
    assert [each.num_since_best for each in found] == [0, 1, 2]
    assert diverged.exit_code == 0
    assert diverged.kinds[-1] == "finished"
    assert [step.step for step in diverged.steps] == [1, 2, 3]
    assert saved(diverged) == {1: found[0].eval_loss, 3: found[2].eval_loss}
    assert "stopping at step 3 of 9: the last 2 evaluations" in diverged.notices["early_stopping"]
    assert "(step 1)" in diverged.notices["early_stopping"]


def test_an_early_stop_is_no_news_to_the_attempt_that_only_has_to_finish(
    tmp_path: Path, diverged: Attempt, tiny_llama: Path
):
    attempt = resumed(tmp_path, diverged, tiny_llama, max_steps=9)

    assert attempt.kinds[-1] == "finished"
    assert attempt.steps == []
    assert attempt.final_adapter == diverged.final_adapter


def test_more_steps_lift_an_early_stop_and_patience_starts_anew(
    tmp_path: Path, diverged: Attempt, tiny_llama: Path
):
    attempt = resumed(tmp_path, diverged, tiny_llama, max_steps=10)

    assert [step.step for step in attempt.steps] == [4, 5]
    assert [each.num_since_best for each in evaluations(attempt)] == [1, 2]
    assert (
        "stopped early at step 3 of 9 and goes on to 10" in attempt.notices["early_stopping_lifted"]
    )
    assert "stopping at step 5 of 10" in attempt.notices["early_stopping"]


def resumed(folder: Path, attempt: Attempt, model_folder: Path, *, max_steps: int) -> Attempt:
    training = {**DIVERGING, "early_stopping_patience": 2, "max_steps": max_steps}
    workplace = Workplace(folder, model_folder)
    return train(workplace, training=training, resume=attempt.checkpoint(3))


def test_a_pause_at_an_evaluated_step_saves_its_loss_with_it(workplace: Workplace):
    attempt = workplace.train_until(2, "pause", lora=LORA, dataset=HELD_OUT, training=DIVERGING)

    by_step = {each.step: each.eval_loss for each in evaluations(attempt)}
    assert saved(attempt) == by_step
    assert set(by_step) == {1, 2}


def test_a_loss_that_is_not_finite_is_null_and_never_best(workplace: Workplace):
    with session_of(workplace, training=TRAINING) as (session, log):
        good = measured(session, log)
        with torch.no_grad():
            next(iter(session.adapted.parameters.values())).fill_(float("nan"))
            for weight in session.adapted.parameters.values():
                weight.fill_(float("nan"))
        bad = measured(session, log)

    assert (bad.eval_loss, bad.is_best, bad.num_since_best) == (None, False, 1)
    assert session.progress.best_eval_loss == good.eval_loss
    codes = [getattr(event, "code", None) for event in read_events(session.run)]
    assert "nonfinite_evaluation" in codes


def test_memory_that_runs_out_in_an_evaluation_leaves_the_split_of_training(workplace: Workplace):
    def fail_beyond_one_row(_module: object, _arguments: object, inputs: dict[str, Any]) -> None:
        widths.append(inputs["input_ids"].shape[1])
        if widths[-1] > longest:
            raise MemoryError

    widths: list[int] = []
    training = {**TRAINING, "per_device_train_batch_size": 4}
    with session_of(workplace, training=training) as (session, log):
        roomy = measured(session, log)
        longest = max(len(row.ids) for row in session.data.eval_rows)
        decoder = session.adapted.base.get_decoder()
        decoder.register_forward_pre_hook(fail_beyond_one_row, with_kwargs=True)
        tight = measured(session, log)

    assert max(widths) > longest
    assert tight.eval_loss == pytest.approx(roomy.eval_loss, rel=1e-6)
    assert session.micro_batch_size == 4
    assert session.adapted.model.training


def test_an_evaluation_at_the_start_is_of_the_base_model_and_never_the_best(workplace: Workplace):
    training = {**TRAINING, "max_steps": 2, "eval_on_start": True}

    attempt = train(workplace, training=training)

    start, end = evaluations(attempt)
    without = train(workplace, training={**training, "eval_on_start": False})
    with session_of(workplace) as (session, log):
        base = measured(session, log)
    assert (start.step, start.is_best, start.num_since_best) == (0, False, 0)
    assert start.eval_loss == base.eval_loss
    assert (end.step, end.is_best) == (2, True)
    assert attempt.final_adapter == without.final_adapter
