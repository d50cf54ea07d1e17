"""Everything beside the adapter that a run needs to continue as if it had never stopped."""

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import nn

from app.domain.errors import ResumeMismatch
from worker.training import optim

RNG_PREFIX = "rng."
_SCHEMA_VERSION = 2


class Cursor(BaseModel):
    """Where in the data the run is; it follows from the step and is kept to be compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    step_in_epoch: int


class HostRng(BaseModel):
    """State of Python's and numpy's generators; torch's are tensors and kept with those."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: tuple[int, tuple[int, ...], float | None]
    numpy_name: str
    numpy_key: tuple[int, ...]
    numpy_position: int
    numpy_has_gauss: int
    numpy_gauss: float


class Progress(BaseModel):
    """How far the run is, and what it has learnt on the way; all of it is saved state."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False)

    step: int = 0
    num_tokens: int = 0
    loss: float | None = None
    micro_batch_size: int | None = None
    """Rows in a micro-batch since memory ran out; None is per_device_train_batch_size."""
    num_updates: int = 0
    """Updates applied with a learning rate above zero."""
    num_skipped: int = 0
    """Steps whose update was not applied because something was not finite."""
    skipped_in_a_row: int = 0
    eval_step: int | None = None
    """Step of the newest evaluation."""
    eval_loss: float | None = None
    """Its loss; None when it was not finite."""
    best_eval_loss: float | None = None
    best_step: int | None = None
    num_evaluations_since_best: int = 0
    is_stopped_early: bool = False


class TrainingState(BaseModel):
    """Content of training_state.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    progress: Progress
    epoch: float
    total_steps: int
    seed: int
    schedule: dict[str, JsonValue]
    cursor: Cursor
    identity: dict[str, JsonValue]
    surroundings: dict[str, JsonValue]
    host_rng: HostRng
    tensors_sha256: str


def read(content: bytes) -> TrainingState:
    """Read training_state.json.

    Raises:
        ValueError: It is not one of this version; the message says which it is of.
    """
    raw = json.loads(content)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != _SCHEMA_VERSION:
        raise ValueError(
            f"it is of version {version} of the training state, this lorad continues version"
            f" {_SCHEMA_VERSION}; continue with the lorad that wrote it, or resume from scratch"
        )
    return TrainingState.model_validate_json(content)


def live_tensors(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """Return every tensor of the run's state by name: weights, optimizer, generators."""
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    tensors |= optim.state_tensors(optimizer, parameters)
    tensors[f"{RNG_PREFIX}torch"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors[f"{RNG_PREFIX}cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash names, types, shapes and contents."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, RUF100 - the global generator is what libraries draw from
    torch.manual_seed(seed)


def capture_host_rng() -> HostRng:
    name, key, position, has_gauss, gauss = np.random.get_state()
    return HostRng(
        python=random.getstate(),  # pyright: ignore[reportArgumentType]
        numpy_name=str(name),
        numpy_key=tuple(int(word) for word in key),
        numpy_position=int(position),
        numpy_has_gauss=int(has_gauss),
        numpy_gauss=float(gauss),
    )


def restore_host_rng(rng: HostRng) -> None:
    random.setstate(rng.python)
    np.random.set_state(
        (
            rng.numpy_name,
            np.asarray(rng.numpy_key, dtype=np.uint32),
            rng.numpy_position,
            rng.numpy_has_gauss,
            rng.numpy_gauss,
        )
    )


def require_same(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compare what makes a run the run that it is.

    Raises:
        ResumeMismatch: A fact differs; the message names it and both values.
    """
    for name in sorted({*saved, *ours}):
        before, now = saved.get(name), ours.get(name)
        if before != now:
            raise ResumeMismatch(
                f"the checkpoint was written with {name} = {_short(before)}, this run has"
                f" {_short(now)}; a checkpoint continues the same run only",
                param=name,
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
