"""What a run does with each key of its spec, and what it reports."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from app.domain import failpoints
from app.domain.events import StoppedEvent
from app.domain.runs import EXIT_DISK_FULL
from tests.training_runs import CHAT_ROWS, Attempt, Workplace

TRAINING: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 3}
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Attempt:
    """Return a run that the others differ from in one key."""
    return Workplace(tmp_path_factory.mktemp("plain"), tiny_llama).train(training=TRAINING)


def test_the_same_run_gives_the_same_bytes(workplace: Workplace, plain: Attempt):
    again = workplace.train(training=TRAINING)

    assert again.losses == plain.losses
    assert again.final_adapter == plain.final_adapter


@pytest.mark.parametrize(
    "group",
    [
        {"seed": 8},
        {"lora": {**LORA, "lora_alpha": 64}},
        {"lora": {**LORA, "lora_dropout": 0.3}},
        {"lora": {**LORA, "r": 2}},
        {"lora": {**LORA, "target_modules": ["q_proj", "v_proj"]}},
        {"training": {**TRAINING, "learning_rate": 1e-2}},
        {"training": {**TRAINING, "lr_scheduler_type": "constant"}},
        {"training": {**TRAINING, "warmup_steps": 2.0}},
        {"training": {**TRAINING, "weight_decay": 0.5}},
        {"training": {**TRAINING, "max_grad_norm": 1e-6}},
        {"training": {**TRAINING, "per_device_train_batch_size": 3}},
        {"training": {**TRAINING, "gradient_accumulation_steps": 2}},
        {"training": {**TRAINING, "max_steps": 4}},
        {"training": {**TRAINING, "dtype": "bfloat16"}},
        {"dataset": {"train_on_inputs": True}},
        {"dataset": {"max_length": 48}},
    ],
    ids=lambda group: str(group)[:70],
)
def test_a_key_changes_what_is_trained(workplace: Workplace, plain: Attempt, group: dict[str, Any]):
    changed = workplace.train(**{"training": TRAINING, **group})

    assert changed.exit_code == 0
    assert changed.final_adapter != plain.final_adapter


def test_epochs_decide_the_steps_where_max_steps_does_not(workplace: Workplace):
    attempt = workplace.train(training={"per_device_train_batch_size": 4, "num_train_epochs": 1.5})

    # 9 rows are 3 steps of at most 4; one and a half epochs are 4.5 steps, so 5.
    assert attempt.ready.total_steps == 5
    assert [len_of_step(s.metrics.epoch) for s in attempt.steps] == [0.44, 0.89, 1.0, 1.44, 1.89]


def len_of_step(epoch: float) -> float:
    return round(epoch, 2)


def test_accumulating_micro_batches_equals_one_large_batch(workplace: Workplace):
    whole = workplace.train(training={"per_device_train_batch_size": 4, "max_steps": 3})
    split = workplace.train(
        training={
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 3,
        }
    )

    for one, other in zip(whole.steps, split.steps, strict=True):
        assert other.metrics.batch_sha == one.metrics.batch_sha
        assert other.metrics.loss == pytest.approx(one.metrics.loss, rel=1e-5)
        assert other.metrics.grad_norm == pytest.approx(one.metrics.grad_norm, rel=1e-5)


def test_gradient_checkpointing_computes_again_and_changes_nothing(
    workplace: Workplace, plain: Attempt, monkeypatch: pytest.MonkeyPatch
):
    from torch.utils import checkpoint

    calls: list[object] = []
    real = checkpoint.checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return real(*arguments, **options)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)

    attempt = workplace.train(training={**TRAINING, "gradient_checkpointing": True})

    assert attempt.losses == plain.losses
    assert calls == [{"use_reentrant": False}] * 2 * 3  # two layers, three steps


def test_checkpoints_come_every_save_steps_and_at_the_end(workplace: Workplace):
    attempt = workplace.train(training={**TRAINING, "max_steps": 5, "save_steps": 2})

    assert [e.step for e in attempt.events if e.kind == "checkpoint"] == [2, 4, 5]


def test_without_save_steps_only_the_end_is_saved(plain: Attempt):
    assert [e.step for e in plain.events if e.kind == "checkpoint"] == [3]


def test_metrics_come_every_logging_steps_and_at_both_ends(workplace: Workplace):
    attempt = workplace.train(training={**TRAINING, "max_steps": 7, "logging_steps": 3})

    assert [step.step for step in attempt.steps] == [1, 3, 6, 7]


@pytest.mark.parametrize("target", ["all-linear", "mlp"])
def test_a_preset_names_its_layers_in_the_ready_event(workplace: Workplace, target: str):
    attempt = workplace.train(
        lora={"target_modules": target}, training={**TRAINING, "max_steps": 1}
    )

    assert len(attempt.ready.target_modules) == {"all-linear": 14, "mlp": 4}[target]


def test_events_are_numbered_without_gaps_and_tell_the_story_in_order(plain: Attempt):
    assert plain.kinds == ["ready", "step", "step", "step", "checkpoint", "finished"]
    assert [event.seq for event in plain.events] == list(range(1, len(plain.events) + 1))


def test_the_ready_event_counts_rows_and_parameters(plain: Attempt):
    ready = plain.ready

    assert (ready.num_rows, ready.num_trained_rows, ready.num_dropped_rows) == (9, 9, 0)
    # Rank 4 on q_proj (64 to 64) of two layers.
    assert ready.num_trainable_parameters == 2 * 4 * (64 + 64)
    assert (ready.device, ready.dtype) == ("cpu", "float32")
    assert 0 < ready.startup_seconds < 60


def test_metrics_are_measured(plain: Attempt):
    metrics = plain.steps[1].metrics

    assert metrics.loss is not None
    assert 5 < metrics.loss < 15  # random weights: about log(49152) = 10.8
    assert metrics.grad_norm is not None
    assert metrics.grad_norm > 0
    assert metrics.param_norm is not None
    assert metrics.param_norm > 0
    assert 0 < metrics.num_target_tokens < metrics.num_tokens
    assert metrics.tokens_per_second == pytest.approx(metrics.num_tokens / metrics.step_seconds)
    assert metrics.peak_memory_bytes > 50_000_000
    assert plain.events[-1].num_tokens == sum(s.metrics.num_tokens for s in plain.steps)  # type: ignore[union-attr]


def test_the_batch_sha_is_that_of_the_line_numbers(workplace: Workplace):
    attempt = workplace.train(training={"per_device_train_batch_size": 1, "num_train_epochs": 1})

    expected = {hashlib.sha256(str(line).encode()).hexdigest()[:16] for line in range(1, 10)}
    assert {step.metrics.batch_sha for step in attempt.steps} == expected


@pytest.mark.parametrize("reason", ["pause", "drain"])
def test_a_pause_saves_the_step_it_stops_at(workplace: Workplace, reason: Any):
    attempt = workplace.train_until(2, reason, training={**TRAINING, "max_steps": 5})

    assert attempt.kinds == ["ready", "step", "step", "checkpoint", "stopped"]
    assert attempt.events[-1].step == 2
    assert attempt.checkpoint(2)


def test_a_pause_where_a_checkpoint_is_already_saves_no_other(workplace: Workplace):
    attempt = workplace.train_until(2, "pause", training={**TRAINING, "save_steps": 2})

    assert attempt.kinds == ["ready", "step", "step", "checkpoint", "stopped"]


def test_a_cancel_saves_nothing(workplace: Workplace):
    attempt = workplace.train_until(2, "cancel", training=TRAINING)

    assert attempt.kinds == ["ready", "step", "step", "stopped"]


def test_a_pause_before_the_first_step_needs_no_checkpoint(workplace: Workplace):
    attempt = workplace.train_until(0, "pause", training=TRAINING)

    assert attempt.kinds == ["ready", "stopped"]
    assert attempt.events[-1].step == 0


def test_a_pause_right_after_a_resume_saves_nothing_new(workplace: Workplace):
    first = workplace.train_until(2, "pause", training=TRAINING)

    again = workplace.train_until(2, "pause", training=TRAINING, resume=first.checkpoint(2))

    assert again.kinds == ["ready", "stopped"]


def test_a_pause_after_the_last_step_comes_too_late(workplace: Workplace):
    attempt = workplace.train_until(3, "pause", training=TRAINING)

    assert attempt.kinds[-1] == "finished"


def test_a_cancel_after_the_last_step_still_counts(workplace: Workplace):
    attempt = workplace.train_until(3, "cancel", training=TRAINING)

    assert attempt.kinds[-1] == "stopped"


def test_resuming_at_the_last_step_only_writes_the_final_adapter(
    workplace: Workplace, plain: Attempt
):
    attempt = workplace.train(training=TRAINING, resume=plain.checkpoint(3))

    assert attempt.kinds == ["ready", "finished"]
    assert attempt.final_adapter == plain.final_adapter


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
):
    # Four files and a manifest each: the eighth write is in the second checkpoint.
    monkeypatch.setenv(failpoints.VARIABLE, "checkpoint.write=raise:ENOSPC@8")
    failpoints._visits.clear()

    attempt = workplace.train(training={**TRAINING, "save_steps": 1})

    assert attempt.exit_code == EXIT_DISK_FULL
    [stopped] = [each for each in attempt.events if isinstance(each, StoppedEvent)]
    assert stopped.reason == "disk_full"
    assert stopped.needed_bytes is not None
    assert attempt.kinds[-3:] == ["checkpoint", "step", "stopped"]
    assert sorted(path.name for path in attempt.folder.iterdir() if path.is_dir()) == [
        "checkpoint-1"
    ]


def test_a_template_without_end_of_turn_is_noted(tmp_path: Path, tiny_llama: Path):
    import shutil

    model_folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (model_folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )

    attempt = Workplace(tmp_path, model_folder).train(training={**TRAINING, "max_steps": 1})

    assert "no_end_of_turn" in attempt.notices


def test_chat_rows_need_a_chat_template(tmp_path: Path, tiny_llama: Path):
    import shutil

    model_folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (model_folder / "chat_template.jinja").unlink()

    attempt = Workplace(tmp_path, model_folder).train(training=TRAINING)

    assert attempt.failed.code == "unusable_data"
    assert "no chat template" in attempt.failed.message


@pytest.mark.parametrize(
    ("row_format", "rows"),
    [
        ("prompt-completion", [{"prompt": "2 + 2 =", "completion": " 4"}]),
        ("text", [{"text": "Once upon a time."}]),
    ],
)
def test_plain_rows_train_too(workplace: Workplace, row_format: str, rows: list[dict[str, Any]]):
    attempt = workplace.train(
        rows=rows * 4, row_format=row_format, training={**TRAINING, "learning_rate": 1e-2}
    )

    assert attempt.exit_code == 0
    assert attempt.steps[-1].metrics.loss < attempt.steps[0].metrics.loss  # type: ignore[operator]


def test_long_rows_are_counted_in_the_ready_event(workplace: Workplace):
    attempt = workplace.train(
        dataset={"max_length": 48, "on_too_long": "drop", "max_dropped_fraction": 1.0},
        training={**TRAINING, "max_steps": 1},
    )

    ready = attempt.ready
    assert ready.num_rows == len(CHAT_ROWS)
    assert ready.num_dropped_rows > 0
    assert ready.dropped_reasons == {"too_long": ready.num_dropped_rows}
    assert ready.num_trained_rows + ready.num_dropped_rows == ready.num_rows


def test_a_missing_layer_fails_the_run_with_its_name(workplace: Workplace):
    attempt = workplace.train(lora={"target_modules": ["c_attn"]}, training=TRAINING)

    assert attempt.exit_code == 1
    assert attempt.failed.code == "no_matching_layers"
    assert "c_attn" in attempt.failed.message
