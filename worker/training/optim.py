"""The optimizer and the learning rate of each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from app.domain.options import TrainingSpec


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a closed form of the step, so that resuming needs the step only.

    Source:
        The lambdas of transformers' get_scheduler.
    """

    kind: str
    peak: float
    num_warmup_steps: int
    total_steps: int

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 1."""
        return self.peak * self._factor(step - 1)

    def _factor(self, done: int) -> float:
        if self.kind == "constant":
            return 1.0
        if done < self.num_warmup_steps:
            return done / self.num_warmup_steps
        if self.kind == "constant_with_warmup":
            return 1.0
        num_decay_steps = max(1, self.total_steps - self.num_warmup_steps)
        if self.kind == "linear":
            return max(0.0, (self.total_steps - done) / num_decay_steps)
        assert self.kind == "cosine", self.kind
        progress = (done - self.num_warmup_steps) / num_decay_steps
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def make_schedule(training: TrainingSpec, *, total_steps: int) -> Schedule:
    """Build the schedule of a run; `warmup_steps` below 1 is a fraction of all steps."""
    warmup = training.warmup_steps
    num_warmup_steps = int(warmup) if warmup >= 1 else math.ceil(total_steps * warmup)
    return Schedule(
        training.lr_scheduler_type, training.learning_rate, num_warmup_steps, total_steps
    )


def make_optimizer(
    parameters: Sequence[nn.Parameter], *, weight_decay: float
) -> torch.optim.Optimizer:
    """Build AdamW; every step sets its own learning rate."""
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(list(parameters), lr=0.0, weight_decay=weight_decay, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
