"""Training on CUDA: it learns, saves and resumes there, and stays within its memory."""

from pathlib import Path
from typing import Any

import pytest

from bench.make_model import make_model
from tests.gpu import checks
from tests.training_runs import Workplace

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

NUM_LAYERS = 30
ALL_LINEAR = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
CHECKPOINTING = {"gradient_checkpointing": True}


def test_ten_steps_are_finite_and_end_lower_than_they_began(smollm2_place: Workplace):
    checks.ten_steps_are_finite_and_learn(smollm2_place, "cuda", learning_rate=1e-3)


def test_a_hundred_steps_on_the_example_data_take_three_tenths_off_the_loss(
    smollm2_place: Workplace,
):
    checks.the_loss_falls(smollm2_place, "cuda", num_steps=100, learning_rate=2e-4, at_least=0.30)


def test_gradients_reach_every_matrix_and_nothing_else(smollm2_place: Workplace):
    checks.gradients_flow(smollm2_place, "cuda")


def test_checkpoints_of_steps_five_and_ten_hold_the_weights(smollm2_place: Workplace):
    checks.checkpoints_are_written(smollm2_place, "cuda")


def test_ten_steps_and_ten_more_are_twenty(smollm2_place: Workplace):
    # The attention kernel's backward adds up in no fixed order, so bits may differ.
    checks.a_resumed_run_goes_on_as_if_it_had_not_stopped(smollm2_place, "cuda", tolerance=2e-2)


def test_every_target_set_trains(smollm2_place: Workplace):
    checks.every_target_set_trains(smollm2_place, "cuda", num_layers=NUM_LAYERS)


@pytest.mark.parametrize(
    ("size", "batch_size", "length", "gigabytes", "groups"),
    [
        pytest.param("tinyllama", 4, 512, 3.2, {}, id="TinyLlama LoRA"),
        pytest.param("llama-7b", 1, 2048, 20.0, {}, id="7B LoRA"),
        pytest.param("llama-7b", 1, 2048, 8.0, {"adapter": "qlora"}, id="7B QLoRA"),
        pytest.param("llama-7b", 4, 2048, 12.0, {"adapter": "qlora"}, id="7B QLoRA 8k tokens"),
    ],
)
def test_shapes_of_real_models_stay_within_their_memory(
    tmp_path: Path,
    smollm2: Path,
    size: str,
    batch_size: int,
    length: int,
    gigabytes: float,
    groups: dict[str, Any],
):
    model = make_model(size, tmp_path / "models" / size, tokenizer=smollm2)

    checks.memory_stays_below(
        checks.place_for(tmp_path / "run", model),
        "cuda",
        batch_size=batch_size,
        length=length,
        limit_bytes=gigabytes * 1e9,
        lora=ALL_LINEAR,
        training=CHECKPOINTING,
        **groups,
    )


def test_smollm2_stays_within_its_memory(smollm2_place: Workplace):
    checks.memory_stays_below(
        smollm2_place,
        "cuda",
        batch_size=4,
        length=512,
        limit_bytes=640e6,
        lora=ALL_LINEAR,
        training=CHECKPOINTING,
    )
