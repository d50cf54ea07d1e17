"""A run that was stopped and continued is, to the last bit, the run that never stopped.

The full matrix runs on two small layers; its corners run on the real SmolLM2-135M-Instruct.
"""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

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
    for number, row in enumerate(CHAT_ROWS * 5)
)

ADAPTERS = ("lora", "qlora")
ACCUMULATIONS = (1, 4)
DROPOUTS = (0.0, 0.1)
PACKINGS = (False, True)
EVALUATIONS = (False, True)
STOPS = ("mid-epoch", "epoch edge")
MATRIX = tuple(itertools.product(ADAPTERS, ACCUMULATIONS, DROPOUTS, PACKINGS, EVALUATIONS, STOPS))
CORNERS = (
    ("lora", 1, 0.0, False, False, "epoch edge"),
    ("lora", 4, 0.1, True, True, "mid-epoch"),
    ("qlora", 1, 0.1, False, True, "mid-epoch"),
    ("qlora", 4, 0.0, True, False, "epoch edge"),
)


def groups_of(
    adapter: str, accumulation: int, dropout: float, packing: bool, is_evaluated: bool
) -> dict[str, Any]:
    evaluation: dict[str, Any] = {"eval_steps": 2} if is_evaluated else {}
    optimizer = {"optim": "adamw_8bit"} if adapter == "qlora" else {}
    return {
        "rows": ROWS,
        "adapter": adapter,
        "lora": {"r": 4, "lora_dropout": dropout, "target_modules": ["q_proj", "down_proj"]},
        "dataset": {"max_length": 128, **({"val_size": 4} if is_evaluated else {})},
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

    def __init__(self, folder: Path, model_folder: Path) -> None:
        self._workplace = Workplace(folder, model_folder)
        self.uninterrupted = cache(self._uninterrupted)

    def _uninterrupted(self, *options: Any) -> Attempt:
        # A cancel after the last step ends a run where its certificate would begin.
        return self._workplace.train_until(10_000, "cancel", **groups_of(*options))

    def continued(self, *options: Any, stop: int) -> Attempt:
        first = self._workplace.train_until(stop, "pause", **groups_of(*options))
        assert first.steps[-1].step == stop
        return self._workplace.train_until(
            10_000, "cancel", resume=first.checkpoint(stop), **groups_of(*options)
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


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("matrix"), tiny_llama)


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("corners"), smollm2)


@pytest.mark.parametrize("options", MATRIX, ids=lambda options: "-".join(map(str, options)))
def test_a_continued_run_ends_where_the_uninterrupted_one_does(
    tiny_runs: Runs, options: tuple[Any, ...]
):
    require_same_end(tiny_runs, *options)


@pytest.mark.model
@pytest.mark.parametrize("options", CORNERS, ids=lambda options: "-".join(map(str, options)))
def test_a_continued_run_of_smollm2_ends_where_the_uninterrupted_one_does(
    real_runs: Runs, options: tuple[Any, ...]
):
    require_same_end(real_runs, *options)
