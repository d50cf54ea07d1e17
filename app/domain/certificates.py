"""Certificates: what was measured before a job may be called succeeded."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Stable name: finite, moved, base_unchanged, loads, loss_reproduced, output_differs."""
    passed: bool
    """Whether it is as it should be."""
    detail: str
    """What was measured, with the values."""


class Certificate(BaseModel):
    """Proof that the final adapter is what training made, and works in plain PEFT."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    status: Literal["passed", "failed"]
    """`passed` when every check did."""
    checks: tuple[Check, ...]
    """In the order they were made."""
    rows: Literal["evaluation", "training"]
    """Which rows the losses are of."""
    num_rows: int
    """Rows the losses are of."""
    loss: float | None
    """Loss on them at the end of training, nats per target token."""
    reloaded_loss: float | None
    """The same loss from the saved files, loaded by plain PEFT in a fresh process."""
    base_loss: float | None
    """The same loss of the base model without the adapter."""
    adapter_sha256: str
    """SHA-256 of adapter_model.safetensors, hexadecimal."""
    seconds: float
    """Time the certificate took in seconds."""
