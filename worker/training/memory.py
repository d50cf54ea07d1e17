"""Memory peaks of a run by phase, measured as it goes."""

import resource
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from app.domain.memory import MemoryReport, PhasePeak
from worker.training.reporting import EventLog

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
# What resets the highest resident size of a process. Source: Linux, Documentation/filesystems/proc.
_RESET_PEAK = "5"


@dataclass
class MemoryMeter:
    """Remembers the highest memory use of every phase.

    A phase inside another counts for itself only; what happens between two phases counts for the
    one before. Where the system does not let a process reset its
    peak, a phase shows the highest use since the process began, and `is_by_phase` is false.
    """

    device: torch.device
    limit_bytes: int | None = None
    expected_bytes: int | None = None
    peaks: dict[str, int] = field(default_factory=dict)
    is_by_phase: bool = True
    _measuring: str | None = None
    _depth: int = 0
    _is_reported: bool = False

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Measure what happens inside as phase `name`."""
        outer = self._measuring
        self._measure(name)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            # Not without an outer phase: step follows step, and the next one costs nothing so.
            if outer is not None and self._depth > 0:
                self._measure(outer)

    @contextmanager
    def reporting_failure(self, log: EventLog) -> Generator[None]:
        """Write a report when what happens inside fails, before the failure is told."""
        try:
            yield
        except Exception:  # whatever it is goes on
            with suppress(OSError, MemoryError):
                self.report(log)
            raise

    def report_first(self, log: EventLog) -> None:
        """Write a report after the first step of an attempt; nothing on later steps."""
        if not self._is_reported:
            self.report(log)

    def report(self, log: EventLog) -> None:
        """Write the peaks so far as an event."""
        self._is_reported = True
        log.memory(self.measured(), step=log.step)

    def measured(self) -> MemoryReport:
        """Return the peaks so far."""
        self._note()
        return MemoryReport(
            device="cuda" if self.device.type == "cuda" else "cpu",
            limit_bytes=self.limit_bytes,
            expected_bytes=self.expected_bytes,
            peak_bytes=self.highest(),
            is_by_phase=self.is_by_phase,
            phases=tuple(PhasePeak(phase=n, peak_bytes=size) for n, size in self.peaks.items()),
        )

    def highest(self) -> int:
        """Return the highest use so far in bytes, over all phases."""
        return max(self._peak(), *self.peaks.values(), 0)

    def _measure(self, name: str) -> None:
        if name == self._measuring:
            return
        self._note()
        self._measuring = name
        self.peaks.setdefault(name, 0)
        self._reset()

    def _note(self) -> None:
        if self._measuring is not None:
            self.peaks[self._measuring] = max(self.peaks[self._measuring], self._peak())

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return highest_resident_bytes()

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            self.is_by_phase = False


def resident_bytes() -> int:
    """Return the memory that this process has in use now, in bytes."""
    return _status("VmRSS") or highest_resident_bytes()


def highest_resident_bytes() -> int:
    """Return the highest memory use of this process since its peak was last reset, in bytes."""
    # Linux counts in KiB.
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def data_bytes() -> int:
    """Return what RLIMIT_DATA counts of this process, in bytes; 0 where nobody counts it."""
    return _status("VmData")


def _status(name: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    values = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(next(values, 0)) * 1024
