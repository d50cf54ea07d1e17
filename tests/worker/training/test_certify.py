"""The certificate: what no sabotaged trainer gets, and what each check measures."""

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from app.domain.certificates import Certificate
from app.domain.events import CertificateEvent
from app.domain.runs import EVENTS_FILE, StopReason
from tests.training_runs import CHAT_ROWS, Attempt, TrainerProcess, Workplace
from tests.worker.training.poison import poisoned
from worker import examiner, trainer
from worker.training.examine import Findings, Question
from worker.training.frozen import FrozenWeights, digest, weighted_sum
from worker.training.reporting import EventLog

TRAINING: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-2}
Ask = Callable[[Question], Findings]


def train(
    workplace: Workplace,
    *,
    ask: Callable[[Ask, Question], Findings] = lambda real, question: real(question),
    stop_requested: Callable[[], StopReason | None] = lambda: None,
    **keys: Any,
) -> Attempt:
    """Run an attempt with doubles between the trainer and its examiner, or its supervisor."""
    run = workplace.run_file(**{"training": TRAINING, **keys})
    control: Any = SimpleNamespace(stop_requested=stop_requested)
    with examiner.forked() as outside, EventLog(run.attempt_folder / EVENTS_FILE) as log:
        double: Any = lambda question: ask(outside, question)  # noqa: E731
        return Attempt.of(run, trainer._attempt(run, log, control, time.monotonic(), double))


def certificate(attempt: Attempt) -> Certificate:
    (event,) = (e for e in attempt.events if isinstance(e, CertificateEvent))
    return event.certificate


def failed_checks(attempt: Attempt) -> dict[str, str]:
    """Return the details of the checks that failed, of a job that failed for them."""
    found = certificate(attempt)
    failed = {check.name: check.detail for check in found.checks if not check.passed}
    assert (attempt.exit_code, attempt.failed.code) == (1, "adapter_unhealthy")
    assert found.status == "failed"
    assert not any(event.kind == "finished" for event in attempt.events)
    for name, detail in failed.items():
        assert f"{name}: {detail}" in attempt.failed.message
    return failed


@contextmanager
def hooked(handle: Any) -> Generator[None]:
    try:
        yield
    finally:
        handle.remove()


def test_a_sound_run_passes_every_check_before_it_finishes(workplace: Workplace):
    attempt = train(workplace)

    found = certificate(attempt)
    assert [check.name for check in found.checks] == [
        "finite",
        "moved",
        "base_unchanged",
        "loads",
        "loss_reproduced",
        "output_differs",
    ]
    assert all(check.passed for check in found.checks)
    assert (found.status, found.rows, found.num_rows) == ("passed", "training", len(CHAT_ROWS))
    assert found.loss is not None
    assert found.reloaded_loss == pytest.approx(found.loss, rel=1e-5)
    assert found.base_loss != pytest.approx(found.loss, rel=1e-5)
    kinds = [event.kind for event in attempt.events]
    assert kinds.index("certificate") < kinds.index("finished")


@pytest.mark.parametrize(
    "keys",
    [
        {"adapter": "qlora"},
        {"lora": {"r": 2, "use_dora": True, "use_rslora": True, "target_modules": "standard"}},
        {"lora": {"r": 2, "modules_to_save": ["norm"], "target_modules": ["q_proj"]}},
        {"training": {**TRAINING, "dtype": "bfloat16"}},
        {"training": {**TRAINING, "packing": True}},
        {"dataset": {"val_size": 3}},
    ],
    ids=lambda keys: str(keys)[:60],
)
def test_every_kind_of_adapter_can_pass(workplace: Workplace, keys: dict[str, Any]):
    attempt = train(workplace, **keys)

    assert attempt.exit_code == 0, attempt.events[-1]
    found = certificate(attempt)
    assert found.status == "passed"
    assert (found.rows == "evaluation") == ("dataset" in keys)


def test_a_learning_rate_without_effect_is_found(workplace: Workplace):
    def without_effect(optimizer: Optimizer, *_: Any) -> None:
        optimizer.param_groups[0]["lr"] = 0.0

    with hooked(register_optimizer_step_pre_hook(without_effect)):
        failed = failed_checks(train(workplace))

    assert failed.keys() == {"moved", "output_differs"}
    assert failed["moved"].startswith("0 of 4 matrices moved in 3 updates")
    assert failed["output_differs"].endswith("largest difference of a logit 0")


def test_weights_that_are_not_finite_are_found_and_get_no_checkpoint(workplace: Workplace):
    def breaks_the_last(optimizer: Optimizer, *_: Any) -> None:
        weight = optimizer.param_groups[0]["params"][1]
        if optimizer.state[weight]["step"] == TRAINING["max_steps"]:
            weight.data[0, 0] = torch.nan

    keys = {"training": {**TRAINING, "save_steps": 3}}
    with hooked(register_optimizer_step_post_hook(breaks_the_last)):
        attempt = train(workplace, **keys)

    failed = failed_checks(attempt)
    assert "1 of 4 tensors" in failed["finite"]
    assert "layers.0.self_attn.q_proj.lora_B" in failed["finite"]
    assert "loss_reproduced" in failed
    assert [event.step for event in attempt.events if event.kind == "checkpoint"] == [3]


def test_names_that_peft_does_not_look_for_are_found(workplace: Workplace):
    def with_another_prefix(real: Ask, question: Question) -> Findings:
        file = question.adapter_folder / "adapter_model.safetensors"
        wrong = {name.replace("q_proj", "q_proj.inner"): t for name, t in load_file(file).items()}
        save_file(wrong, file)
        return real(question)

    failed = failed_checks(train(workplace, ask=with_another_prefix))

    assert failed.keys() >= {"loads", "output_differs"}
    assert "4 missing in the file" in failed["loads"]
    assert "q_proj.inner.lora_A" in failed["loads"]


def test_a_saved_file_that_is_not_what_was_trained_is_found(workplace: Workplace):
    def with_one_matrix_changed(real: Ask, question: Question) -> Findings:
        file = question.adapter_folder / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors[min(tensors)] *= 30
        save_file(tensors, file)
        return real(question)

    assert failed_checks(train(workplace, ask=with_one_matrix_changed)).keys() == {
        "loss_reproduced"
    }


def test_an_adapter_that_peft_refuses_is_found(workplace: Workplace):
    def with_a_broken_config(real: Ask, question: Question) -> Findings:
        (question.adapter_folder / "adapter_config.json").write_text('{"peft_type": "NONE"}')
        return real(question)

    failed = failed_checks(train(workplace, ask=with_a_broken_config))

    assert failed["loads"].startswith("PEFT refuses it: ")


def test_a_touched_base_weight_is_found(workplace: Workplace):
    visits: list[None] = []

    def touches(module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.Embedding) and not visits:
            visits.append(None)
            module.weight.data[0, 0] += 1e-6

    with hooked(register_module_forward_pre_hook(touches)):
        failed = failed_checks(train(workplace))

    assert "1 of 20 frozen tensors" in failed["base_unchanged"]
    assert "embed_tokens.weight" in failed["base_unchanged"]


def test_a_warm_up_that_takes_the_only_update_is_told(workplace: Workplace):
    attempt = train(workplace, training={"max_steps": 1})

    failed = failed_checks(attempt)
    assert failed.keys() == {"moved", "output_differs"}
    assert "no update with a learning rate above 0 was applied in 1 steps" in failed["moved"]
    assert "set training.warmup_steps to 0" in failed["moved"]


def test_one_update_is_enough_for_b_alone(workplace: Workplace):
    attempt = train(workplace, training={"max_steps": 1, "warmup_steps": 0})

    assert attempt.exit_code == 0
    moved = next(check for check in certificate(attempt).checks if check.name == "moved")
    assert moved.detail.startswith("2 of 2 matrices moved in 1 updates")


def test_a_row_that_breaks_the_base_model_itself_is_left_out(tmp_path: Path, tiny_llama: Path):
    model = poisoned(tiny_llama, tmp_path / "model", row=CHAT_ROWS[4], rows=CHAT_ROWS)

    attempt = train(Workplace(tmp_path, model), monitoring={"on_nonfinite": "skip"})

    assert attempt.exit_code == 0
    reproduced = next(c for c in certificate(attempt).checks if c.name == "loss_reproduced")
    assert "; 1 rows on which the base is not finite left out" in reproduced.detail


def test_resuming_at_the_last_step_is_certified_too(workplace: Workplace):
    first = train(workplace)

    again = train(workplace, resume=first.checkpoint(4))

    assert certificate(again).adapter_sha256 == certificate(first).adapter_sha256
    assert certificate(again).loss == certificate(first).loss


def test_the_examiner_dies_with_its_trainer(workplace: Workplace):
    process = TrainerProcess(workplace.run_file(training={"max_steps": 10_000, "logging_steps": 1}))
    process.wait_for_step(1)
    (outside,) = psutil.Process(process._process.pid).children()
    memory = outside.memory_full_info().uss

    process._process.send_signal(signal.SIGKILL)

    _, alive = psutil.wait_procs([outside], timeout=5)
    process.wait()
    assert alive == []
    assert memory < 50e6


def test_an_examiner_that_gives_no_answer_is_no_verdict():
    with examiner.forked() as outside:
        os.kill(outside.pid, signal.SIGKILL)
        os.waitid(os.P_PID, outside.pid, os.WEXITED | os.WNOWAIT)

        with pytest.raises((RuntimeError, BrokenPipeError)):
            outside(Question.model_construct(rows=()))


def test_a_digest_tells_any_change():
    weights = torch.arange(200_000, dtype=torch.float32)
    changed, swapped = weights.clone(), weights.clone()
    changed[123_456] += 1
    swapped[[0, 131_072]] = swapped[[131_072, 0]]

    for take in (digest, lambda t: weighted_sum(t.view(torch.uint8))):
        assert take(weights) == take(weights.clone())
        assert len({take(weights), take(changed), take(swapped), take(weights[:-1])}) == 4


def test_weights_that_vanish_or_appear_have_changed_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    frozen = FrozenWeights(model, trained={"1.weight", "1.bias"})
    assert frozen.changed() == []
    assert len(frozen) == 2

    del model[0].bias
    model[1].weight.data += 1

    assert frozen.changed() == ["0.bias"]
