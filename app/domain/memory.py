"""Memory: what a run will need by part, and what it needed by phase."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field


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
    is_by_phase: bool = True
    """False where the system does not let a process reset its peak: each phase then shows the
    highest use up to its end."""
    phases: tuple[PhasePeak, ...]
    """In the order they first happened."""


class MemoryPart(BaseModel):
    """Memory for one purpose."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """weights, mapped_file, adapter, gradients, optimizer, activations, loss or runtime."""
    low_bytes: int
    """At least this many bytes."""
    expected_bytes: int
    """Most likely this many bytes."""
    high_bytes: int
    """Hardly ever more than this many bytes."""


class MemoryEstimate(BaseModel):
    """Memory that a run is expected to need, by part."""

    # Its sums are written out and made anew from the parts when it is read.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    device: Literal["cpu", "cuda"]
    """Whose memory this is."""
    micro_batch_size: int
    """Rows in the micro-batch that is estimated."""
    num_tokens: int
    """Tokens in it: the longest one of the run."""
    parts: tuple[MemoryPart, ...]
    """What the memory is for."""

    @computed_field
    @property
    def low_bytes(self) -> int:
        """Sum of the parts' low values in bytes."""
        return sum(part.low_bytes for part in self.parts)

    @computed_field
    @property
    def expected_bytes(self) -> int:
        """Sum of the parts' expected values in bytes."""
        return sum(part.expected_bytes for part in self.parts)

    @computed_field
    @property
    def high_bytes(self) -> int:
        """Sum of the parts' high values in bytes."""
        return sum(part.high_bytes for part in self.parts)
