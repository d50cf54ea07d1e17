"""Memory peaks of a run by phase, measured as it goes."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class MemoryMeter:
    """Remembers the highest memory use of every phase."""

    device: torch.device
    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Measure what happens inside as phase `name`."""
        yield
