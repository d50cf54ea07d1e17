"""One optimizer step: losses summed over targets, divided once, checked, applied."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from app.domain.errors import NonFiniteStep
from worker.training.batch import Batch
from worker.training.loss import LossSum


@dataclass(frozen=True)
class StepResult:
    """What one step measured."""

    loss: float
    """Nats per target token."""
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    param_norm: float
    """L2 norm of the trained weights before the update."""
    num_tokens: int
    num_targets: int


def train_step(
    loss_sum: LossSum,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    max_grad_norm: float,
) -> StepResult:
    """Run one optimizer step over the micro-batches in `batches`.

    Each token weighs the same however the step is split: losses are summed and
    divided once by the target count of the whole step.

    Raises:
        NonFiniteStep: Loss or gradient norm is NaN or infinite. Weights are untouched.
    """
    num_targets = sum(batch.num_targets for batch in batches)
    step_loss = torch.zeros((), device=parameters[0].device)
    for batch in batches:
        loss = loss_sum(batch) / num_targets
        loss.backward()
        step_loss += loss.detach()

    param_norm = nn.utils.get_total_norm([p.detach() for p in parameters])
    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    # The one device sync of a step, before the update, so that a broken one is never applied.
    nats, norm, weight = torch.stack([step_loss, grad_norm, param_norm]).tolist()
    if not (math.isfinite(nats) and math.isfinite(norm)):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteStep(f"loss {nats}, gradient norm {norm}; the update was not applied")

    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    num_tokens = sum(batch.num_tokens for batch in batches)
    return StepResult(nats, norm, weight, num_tokens, num_targets)
