"""From runs to the figures of a table: medians, ratios to lorad, and what voids a row."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from bench.comparison.cases import REFERENCE, Column, System
from bench.comparison.processes import Run

MAX_LOSS_DIFFERENCE = 1e-4
"""Relative; above it two systems did not do the same work, and their times say nothing."""


@dataclass(frozen=True)
class Work:
    """What one step has to do."""

    num_targets: int
    flops: float


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@dataclass(frozen=True)
class Figures:
    """One system in one column."""

    system: str
    column: Column
    num_rounds: int = 0
    problem: str = ""
    """Why the row is void; empty where it counts."""
    targets_per_second: Spread | None = None
    times_slower: Spread | None = None
    """How many times faster lorad does the same work; round by round, because a round is the
    closest in time that two systems come to each other."""
    step_seconds: Spread | None = None
    cpu_seconds: Spread | None = None
    of_floor: Mapping[str, float] = field(default_factory=dict[str, float])
    """Fraction of the floor reached, by the library whose products make the floor."""
    peak_rss_bytes: int = 0
    loss_difference: float | None = None


@dataclass(frozen=True)
class Table:
    """All that the figures of a table are made of."""

    runs: Sequence[Run]
    work: Mapping[str, Sequence[Work]]
    """What each step has to do, from step 1, by the name of the rows file."""
    speeds: Mapping[str, float]
    """Floating-point operations per second of this machine, by library."""
    num_warmup: int
    """Steps at the start of each run that are not measured; at least one."""

    @property
    def measured(self) -> range:
        return range(self.num_warmup + 1, len(next(iter(self.work.values()))) + 1)

    def reference(self, number: int) -> Run | None:
        """Return lorad's run of a round, if it finished."""
        for run in self.runs:
            if run.system == REFERENCE and run.round == number and not run.problem:
                return run
        return None

    def useful_flops_per_second(self, run: Run, rows: str) -> float:
        """Return the work that had to be done over the time it took: padding makes it lower."""
        flops = sum(self.work[rows][step - 1].flops for step in self.measured)
        return flops / sum(run.seconds_of(step) for step in self.measured)


def summarize(table: Table, systems: Sequence[System]) -> list[Figures]:
    """Return the figures of every system and column that has runs, in the order of `systems`."""
    result: list[Figures] = []
    for system in systems:
        for column in system.columns:
            own = [run for run in table.runs if (run.system, run.column) == (system.name, column)]
            if own:
                result.append(_figures(table, system, column, own))
    return result


def _figures(table: Table, system: System, column: Column, runs: Sequence[Run]) -> Figures:
    if failed := next((run for run in runs if run.problem), None):
        return Figures(system.name, column, len(runs), problem=f"failed: {failed.problem}")
    pairs = [(run, ours) for run in runs if (ours := table.reference(run.round))]
    if not pairs:
        return Figures(system.name, column, len(runs), problem="lorad has no run to compare with")
    difference = None
    if system.has_equal_batches:
        difference = max(loss_difference(run, ours) for run, ours in pairs)
    problem = void_reason(runs, table.work[system.rows], difference)
    rates = [table.useful_flops_per_second(run, system.rows) for run in runs]
    ratios = [
        table.useful_flops_per_second(ours, "in_order")
        / table.useful_flops_per_second(run, system.rows)
        for run, ours in pairs
    ]
    is_compared = not problem and system.name != REFERENCE
    return Figures(
        system=system.name,
        column=column,
        num_rounds=len(runs),
        problem=problem,
        targets_per_second=Spread.of(_targets_per_second(run, table.measured) for run in runs),
        times_slower=Spread.of(ratios) if is_compared else None,
        step_seconds=Spread.of(run.seconds_of(s) for run in runs for s in table.measured),
        cpu_seconds=Spread.of(_cpu_seconds_per_step(run, table.measured) for run in runs),
        of_floor={name: statistics.median(rates) / speed for name, speed in table.speeds.items()},
        peak_rss_bytes=max(run.peak_rss_bytes for run in runs),
        loss_difference=difference,
    )


def loss_difference(run: Run, reference: Run) -> float:
    """Return the largest relative difference between the losses of two runs, over all steps."""
    pairs = zip(run.steps, reference.steps, strict=True)
    differences = [abs(step.loss / other.loss - 1) for step, other in pairs]
    # A NaN compares as smaller than everything; here it has to be the worst.
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def void_reason(runs: Sequence[Run], work: Sequence[Work], loss_difference: float | None) -> str:
    """Return why a row does not count, or nothing.

    Args:
        runs: Finished runs of one system.
        work: What each step has to do.
        loss_difference: Relative to lorad's losses; None where the batches are others.
    """
    for run in runs:
        for step, task in zip(run.steps, work, strict=True):
            if step.num_targets != task.num_targets:
                return (
                    f"void: trained on {step.num_targets} targets in step {step.step}, where the"
                    f" rows have {task.num_targets}"
                )
    if loss_difference is not None and loss_difference > MAX_LOSS_DIFFERENCE:
        return f"void: losses differ from lorad's by {loss_difference:.1e}"
    return ""


def _targets_per_second(run: Run, measured: Sequence[int]) -> float:
    targets = sum(run.steps[step - 1].num_targets for step in measured)
    return targets / sum(run.seconds_of(step) for step in measured)


def _cpu_seconds_per_step(run: Run, measured: Sequence[int]) -> float:
    first, last = run.steps[measured[0] - 2].at, run.steps[measured[-1] - 1].at
    return run.cpu_seconds_between(first, last) / len(measured)
