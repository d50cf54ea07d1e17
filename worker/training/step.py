"""One optimizer step: losses summed over targets, divided once, checked, applied."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from app.domain import failpoints
from app.domain.errors import NonFiniteStep
from worker.training import pulse
from worker.training.batch import Batch
from worker.training.loss import LossSum


@dataclass(frozen=True)
class StepResult:
    """What one step measured; a value that was not finite is None."""

    loss: float | None
    """Nats per target token."""
    grad_norm: float | None
    """L2 norm of the gradient before clipping."""
    param_norm: float | None
    """L2 norm of the trained weights before the update."""
    num_tokens: int
    num_targets: int
    is_applied: bool = True
    """False when something was not finite, so that the weights stayed as they were."""


class NotApplied(NonFiniteStep):
    """A step whose update was not applied because something in it is not finite.

    Args:
        message: What was measured.
        result: What could be measured.
        broken: Numbers, in the order of the parameters, of those whose gradient is not finite.
    """

    def __init__(self, message: str, *, result: StepResult, broken: Sequence[int]) -> None:
        super().__init__(message)
        self.result = result
        self.broken = broken


def train_step(
    loss_sum: LossSum,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    max_grad_norm: float,
    inspect_gradients: Callable[[], None] | None = None,
) -> StepResult:
    """Run one optimizer step over the micro-batches in `batches`.

    Each token weighs the same however the step is split: losses are summed and
    divided once by the target count of the whole step. `inspect_gradients`, if
    given, is called after backward and before clipping.

    Raises:
        NotApplied: Loss, gradient or weights are NaN or infinite. Weights, the
            optimizer's state and the generators are as if the step had only been looked at.
    """
    num_targets = sum(batch.num_targets for batch in batches)
    num_tokens = sum(batch.num_tokens for batch in batches)
    step_loss = torch.zeros((), device=parameters[0].device)
    for batch in batches:
        loss = loss_sum(batch) / num_targets
        loss.backward()
        failpoints.hit("trainer.micro_batch")
        pulse.beat()
        step_loss += loss.detach()

    if inspect_gradients is not None:
        inspect_gradients()
    param_norm = nn.utils.get_total_norm([p.detach() for p in parameters])
    grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # The one device sync of a step, before the update, so that a broken one is never applied.
    nats, norm, weight = torch.stack([step_loss, grad_norm.to(step_loss), param_norm]).tolist()
    if not (math.isfinite(nats) and math.isfinite(norm) and math.isfinite(weight)):
        broken = _nonfinite_gradients(parameters)
        optimizer.zero_grad(set_to_none=True)
        raise NotApplied(
            f"loss {nats}, gradient norm {norm}, weight norm {weight}; the update was not applied",
            result=StepResult(
                _finite(nats),
                _finite(norm),
                _finite(weight),
                num_tokens,
                num_targets,
                is_applied=False,
            ),
            broken=broken,
        )

    nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(nats, norm, weight, num_tokens, num_targets)


def _nonfinite_gradients(parameters: Sequence[nn.Parameter]) -> Sequence[int]:
    """Return which gradients are to blame; asked before clipping, which would spread a NaN."""
    there = [(index, p.grad) for index, p in enumerate(parameters) if p.grad is not None]
    if not there:
        return []
    sums = torch.stack([gradient.float().abs().sum() for _, gradient in there]).tolist()
    return [
        index for (index, _), total in zip(there, sums, strict=True) if not math.isfinite(total)
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
