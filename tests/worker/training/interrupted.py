"""Runs that are stopped and continued, to be compared with runs that never stopped."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from app.domain.runs import ResumePoint, StopReason
from tests.training_runs import CHAT_ROWS, Attempt, Workplace

UNITS_PER_STEP = 4
# Rows of different lengths, enough of them for several steps an epoch with and without packing.
ROWS = tuple(
    {
        "messages": [
            {"role": "user", "content": f"{row['messages'][0]['content']} ({number})"},
            {"role": "assistant", "content": row["messages"][1]["content"] * (1 + number % 3)},
        ]
    }
    for number, row in enumerate(CHAT_ROWS * 2)
)


def groups_of(
    adapter: str, accumulation: int, dropout: float, packing: bool, is_evaluated: bool
) -> dict[str, Any]:
    evaluation: dict[str, Any] = {"eval_steps": 2} if is_evaluated else {}
    optimizer = {"optim": "adamw_8bit"} if adapter == "qlora" else {}
    return {
        "adapter": adapter,
        "lora": {"r": 4, "lora_dropout": dropout, "target_modules": ["q_proj", "down_proj"]},
        "dataset": {"max_length": 64, **({"val_size": 4} if is_evaluated else {})},
        "training": {
            "per_device_train_batch_size": UNITS_PER_STEP // accumulation,
            "gradient_accumulation_steps": accumulation,
            "num_train_epochs": 1.5,
            "learning_rate": 1e-3,
            "packing": packing,
            **optimizer,
            **evaluation,
        },
    }


class Runs:
    """Uninterrupted runs, made once each, and the continuation of interrupted ones."""

    def __init__(self, folder: Path, model_folder: Path, rows: Sequence[dict[str, Any]]) -> None:
        self._workplace = Workplace(folder, model_folder)
        self._rows = rows
        self.uninterrupted = cache(self._uninterrupted)

    def _uninterrupted(self, *options: Any) -> Attempt:
        # A cancel after the last step ends a run where its certificate would begin.
        return self._train(10_000, "cancel", *options)

    def continued(self, *options: Any, stop: int) -> Attempt:
        first = self._train(stop, "pause", *options)
        assert first.steps[-1].step == stop
        return self._train(10_000, "cancel", *options, resume=first.checkpoint(stop))

    def _train(
        self, step: int, reason: StopReason, *options: Any, resume: ResumePoint | None = None
    ) -> Attempt:
        return self._workplace.train_until(
            step, reason, rows=self._rows, resume=resume, **groups_of(*options)
        )


def end_state(attempt: Attempt, step: int) -> dict[str, Any]:
    """Return what the last checkpoint holds; its digest covers weights, moments and generators."""
    folder = attempt.checkpoint(step).folder
    state = json.loads((folder / "training_state.json").read_text())
    adapter = (folder / "adapter_model.safetensors").read_bytes()
    return {key: state[key] for key in ("progress", "tensors_sha256", "host_rng")} | {
        "adapter": adapter
    }


def stop_of(attempt: Attempt, kind: str) -> int:
    edge = next(each.step for each in attempt.steps if each.metrics.epoch >= 1.0)
    assert edge >= 2, "an epoch of one step has no middle"
    return edge if kind == "epoch edge" else edge - 1


def require_same_end(runs: Runs, *options: Any) -> None:
    *settings, kind = options
    whole = runs.uninterrupted(*settings)
    last, stop = whole.steps[-1].step, stop_of(whole, kind)
    assert stop < last

    rest = runs.continued(*settings, stop=stop)

    assert end_state(rest, last) == end_state(whole, last)
    assert rest.losses == {s: loss for s, loss in whole.losses.items() if s > stop}
