"""The learning-rate schedule."""

import warnings

import pytest
import torch
from transformers import get_scheduler

from app.domain.options import TrainingSpec
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
