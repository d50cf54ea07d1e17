"""Replays: steps done again from a checkpoint, beside what was recorded of them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ReplayedStep(BaseModel):
    """One step done again."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: int
    """Optimizer step, counted from 1."""
    recorded_loss: float | None
    """Loss in nats per target token when it was first done; null where it was not logged."""
    replayed_loss: float | None
    """Loss in nats per target token now."""
    recorded_grad_norm: float | None
    """L2 norm of the gradient when it was first done; null where it was not logged."""
    replayed_grad_norm: float | None
    """L2 norm of the gradient now."""
    identical: bool | None
    """Whether loss, norm and rows are the same to the last bit; null where it was not logged."""


class StateComparison(BaseModel):
    """The whole state after the last replayed step beside the checkpoint that was saved there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: int
    """Step of that checkpoint."""
    recorded_tensors_sha256: str
    """SHA-256 over its adapter, optimizer and generator state, hexadecimal."""
    replayed_tensors_sha256: str
    """SHA-256 over the same of the replay, hexadecimal."""
    identical: bool
    """Whether the two are the same."""


class Verification(BaseModel):
    """What a replay from a checkpoint gave."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    object: Literal["resume_verification"] = "resume_verification"
    """Always `resume_verification`."""
    job_id: str
    """Id of the job."""
    checkpoint_id: str
    """Id of the checkpoint that was replayed from."""
    checkpoint_step: int
    """Its step."""
    attempt: int
    """Attempt whose settings were used, the one that did the first step past the checkpoint."""
    steps: list[ReplayedStep]
    """The steps done again, in their order."""
    largest_absolute_difference: float
    """Largest difference of a loss or gradient norm from its recorded value."""
    largest_relative_difference: float
    """The same, divided by the recorded value."""
    next_checkpoint: StateComparison | None
    """Comparison of the whole state; null when no checkpoint was saved after the last step."""
    identical: bool
    """True when everything that was recorded came out the same to the last bit."""
    notices: list[str]
    """What the trainer noted while it was getting ready, such as other surroundings."""
    seconds: float
    """Time the worker took in seconds."""
