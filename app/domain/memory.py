"""Memory: what a run will need by part, and what it needed by phase."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class PhasePeak(BaseModel):
    """The highest memory use during one phase of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    phase: str
    """load, data, probe, train, evaluate, save or certify."""
    peak_bytes: int
    """Highest use in bytes: of the GPU on CUDA, of the trainer process on the CPU."""


class MemoryReport(BaseModel):
    """Measured memory of one attempt, beside what was expected."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: Literal["cpu", "cuda"]
    """Whose memory this is."""
    limit_bytes: int | None
    """Memory the run was allowed, in bytes; null without a limit."""
    expected_bytes: int | None
    """Peak that was expected before the first step, in bytes."""
    peak_bytes: int
    """Highest use of the whole attempt in bytes."""
    phases: tuple[PhasePeak, ...]
    """In the order they first happened."""
