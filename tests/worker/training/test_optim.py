"""The learning-rate schedule and the optimizers."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from app.domain.options import TrainingSpec
from tests.training_runs import Attempt, Workplace
from tests.worker.training.test_checkpoint import change_tensors
from worker.training import optim


def rates_of_transformers(kind: str, peak: float, num_warmup: int, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(
        kind, optimizer, num_warmup_steps=num_warmup, num_training_steps=total
    )
    rates: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no gradients here, so no optimizer step before it
        for _ in range(total):
            rates.append(scheduler.get_last_lr()[0])
            scheduler.step()
    return rates


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_every_learning_rate_is_the_one_of_transformers(kind: str, warmup: int):
    training = TrainingSpec(learning_rate=3e-4, lr_scheduler_type=kind, warmup_steps=float(warmup))

    schedule = optim.make_schedule(training, total_steps=30)

    ours = [schedule.learning_rate(step) for step in range(1, 31)]
    assert ours == pytest.approx(rates_of_transformers(kind, 3e-4, warmup, 30), rel=1e-12)


def test_warmup_below_one_is_a_fraction_of_all_steps_rounded_up():
    schedule = optim.make_schedule(TrainingSpec(warmup_steps=0.05), total_steps=30)

    assert schedule.num_warmup_steps == 2


def test_each_step_sets_its_own_learning_rate():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = optim.make_optimizer([weight], weight_decay=0.5)
    weight.grad = torch.zeros(1)

    optim.set_learning_rate(optimizer, 0.1)
    optimizer.step()

    # AdamW without a gradient only decays: w * (1 - lr * weight_decay).
    assert weight.item() == pytest.approx(0.95)


RUN: dict[str, Any] = {
    # Rank 64: some matrices reach the 4,096 numbers from which moments are kept in 8 bits.
    "lora": {"r": 64, "lora_alpha": 64, "target_modules": ["q_proj", "k_proj"]},
    "training": {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "optim": "adamw_8bit",
    },
}


@pytest.fixture(scope="module")
def in_8_bits(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Attempt:
    return Workplace(tmp_path_factory.mktemp("8bit"), tiny_llama).train(**RUN)


def moments(attempt: Attempt, step: int = 2) -> dict[str, torch.Tensor]:
    saved = load_file(attempt.checkpoint(step).folder / "optimizer.safetensors")
    return {name: tensor for name, tensor in saved.items() if not name.startswith("rng.")}


def test_moments_of_8_bits_are_saved_with_the_maps_they_are_indices_into(in_8_bits: Attempt):
    saved = moments(in_8_bits)

    first = "base_model.model.model.layers.0.self_attn"
    large = {name: t.dtype for name, t in saved.items() if f"{first}.q_proj.lora_A" in name}
    assert large == {
        f"{first}.q_proj.lora_A.default.weight.{key}": dtype
        for key, dtype in {
            "step": torch.int64,
            "state1": torch.uint8,
            "state2": torch.uint8,
            "absmax1": torch.float32,
            "absmax2": torch.float32,
        }.items()
    }
    small = {name: t.dtype for name, t in saved.items() if f"{first}.k_proj.lora_B" in name}
    assert set(small.values()) == {torch.int64, torch.float32}
    assert [saved[f"optimizer.qmap{n}"].shape for n in (1, 2)] == [(256,), (256,)]
    assert {t.item() for name, t in saved.items() if name.endswith(".step")} == {2}


def test_a_resumed_run_with_8_bit_moments_is_the_uninterrupted_one(
    workplace: Workplace, in_8_bits: Attempt
):
    rest = workplace.train(**RUN, resume=in_8_bits.checkpoint(2))

    assert rest.losses == {step: in_8_bits.losses[step] for step in (3, 4)}
    assert rest.final_adapter == in_8_bits.final_adapter
    ours, theirs = moments(rest, 4), moments(in_8_bits, 4)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["optimizer.qmap1", "q_proj.lora_A.default.weight.absmax2"])
def test_every_part_of_8_bit_moments_is_needed(
    workplace: Workplace, in_8_bits: Attempt, tmp_path: Path, name: str
):
    point = in_8_bits.checkpoint(2)
    folder = shutil.copytree(point.folder, tmp_path / "copy" / point.folder.name)
    copied = point.model_copy(update={"folder": folder})

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[next(each for each in sorted(tensors) if each.endswith(name))]

    attempt = workplace.train(**RUN, resume=change_tensors(copied, "optimizer.safetensors", drop))

    assert attempt.failed.code == "resume_mismatch"
    assert f"{name} is missing from the checkpoint" in attempt.failed.message


def test_paging_where_there_is_none_is_noted_and_changes_nothing(
    workplace: Workplace, in_8_bits: Attempt
):
    training = {**RUN["training"], "optim": "paged_adamw_8bit"}

    paged = workplace.train(**{**RUN, "training": training})

    assert "runs as adamw_8bit: cpu has no memory that pages" in paged.notices["no_paging"]
    assert paged.final_adapter == in_8_bits.final_adapter
    assert "no_paging" not in in_8_bits.notices


@pytest.mark.parametrize(("size", "tolerance"), [(4095, 1e-6), (4096, 0.2)])
def test_8_bit_adamw_goes_where_adamw_goes(size: int, tolerance: float):
    """Below 4,096 numbers the moments are exact; from there on they are rounded, not wrong."""
    start = torch.linspace(-1, 1, size)
    moved: list[torch.Tensor] = []
    for kind in ("adamw_torch", "adamw_8bit"):
        weight = torch.nn.Parameter(start.clone())
        optimizer = optim.make_optimizer([weight], weight_decay=0.1, kind=kind)
        optim.set_learning_rate(optimizer, 1e-2)
        for step in range(5):
            weight.grad = (weight.detach() - step * 0.1).cos()
            optimizer.step()
        moved.append(weight.detach() - start)

    difference = ((moved[1] - moved[0]).norm() / moved[0].norm()).item()

    assert difference < tolerance
    assert (difference > 1e-5) is (size == 4096)
