"""The optimizer and the learning rate of each step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from app.domain.options import TrainingSpec
from worker.training import quantize

# State that bitsandbytes shares between all parameters.
_SHARED = ("qmap1", "qmap2")


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
    parameters: Sequence[nn.Parameter], *, weight_decay: float, kind: str = "adamw_torch"
) -> torch.optim.Optimizer:
    """Build AdamW; every step sets its own learning rate.

    Args:
        parameters: What is trained.
        weight_decay: Decoupled weight decay.
        kind: `training.optim`. A paged one on a device without paging is the plain 8-bit one.

    Raises:
        TrainingError: An 8-bit one is wanted and bitsandbytes does not load.
    """
    if kind == "adamw_torch":
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        return torch.optim.AdamW(list(parameters), lr=0.0, weight_decay=weight_decay, fused=fused)
    is_paged = kind == "paged_adamw_8bit" and has_paging(parameters[0].device)
    adamw = quantize.load_bitsandbytes().optim.AdamW8bit
    return adamw(list(parameters), lr=0.0, weight_decay=weight_decay, is_paged=is_paged)


def has_paging(device: torch.device) -> bool:
    """Tell whether optimizer state can live in memory that pages between device and host."""
    return device.type == "cuda"


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Return the whole state of an optimizer by name.

    Moments and counters are `PARAMETER.KEY`. The quantization maps, which 8-bit moments are indices
    into, belong to all parameters together and come once.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            is_tensor = isinstance(value, torch.Tensor)
            tensors[state_name(name, key)] = value if is_tensor else torch.tensor(value)
    return tensors


def state_name(parameter: str, key: str) -> str:
    """Return the name under which `state_tensors` lists a key of a parameter's state."""
    return f"optimizer.{key}" if key in _SHARED else f"{parameter}.{key}"


def blank_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """Give a parameter the state that it has right before its first update, and return it.

    bitsandbytes keeps the moments of small parameters in 32 bits, those of others in 8; only it
    knows which, and where paged ones have to be.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    else:
        (group,) = optimizer.param_groups
        place = next(i for i, each in enumerate(group["params"]) if each is parameter)
        initialize: Any = optimizer.init_state  # pyright: ignore[reportAttributeAccessIssue]
        initialize(group, parameter, 0, place)
    return optimizer.state[parameter]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
