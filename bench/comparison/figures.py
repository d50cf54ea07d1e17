"""From runs to the figures of a table: medians over rounds, ratios to lorad, and what voids a row."""

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


def summarize(
    runs: Sequence[Run],
    systems: Sequence[System],
    work: Mapping[str, Sequence[Work]],
    speeds: Mapping[str, float],
    *,
    num_warmup: int,
) -> list[Figures]:
    """Return the figures of every system and column that has runs, lorad first.

    Args:
        runs: All runs of a table.
        systems: The systems in the order of the table.
        work: What each step has to do, from step 1, by the name of the rows file.
        speeds: Floating-point operations per second of this machine, by library.
        num_warmup: Steps at the start of each run that are not measured; at least one.
    """
    reference = {run.round: run for run in runs if run.system == REFERENCE}
    result: list[Figures] = []
    for system in systems:
        for column in system.columns:
            own = [run for run in runs if (run.system, run.column) == (system.name, column)]
            if own:
                steps = work[system.rows]
                result.append(_figures(system, column, own, reference, steps, speeds, num_warmup))
    return result


def _figures(
    system: System,
    column: Column,
    runs: Sequence[Run],
    reference: Mapping[int, Run],
    work: Sequence[Work],
    speeds: Mapping[str, float],
    num_warmup: int,
) -> Figures:
    name = system.name
    if failed := next((run for run in runs if run.problem), None):
        return Figures(name, column, len(runs), problem=f"failed: {failed.problem}")
    pairs = [(run, reference[run.round]) for run in runs if run.round in reference]
    if not pairs or any(ours.problem for _, ours in pairs):
        return Figures(name, column, len(runs), problem="lorad has no run to compare with")
    difference = None
    if system.has_equal_batches:
        difference = max(loss_difference(run, ours) for run, ours in pairs)
    problem = void_reason(runs, work, difference)
    measured = range(num_warmup + 1, len(work) + 1)
    rates = [_flops_per_second(run, work, measured) for run in runs]
    return Figures(
        system=name,
        column=column,
        num_rounds=len(runs),
        problem=problem,
        targets_per_second=Spread.of(_targets_per_second(run, measured) for run in runs),
        times_slower=None if problem else _times_slower(pairs, work, measured, system),
        step_seconds=Spread.of(run.seconds_of(step) for run in runs for step in measured),
        cpu_seconds=Spread.of(_cpu_seconds(run, measured) for run in runs),
        of_floor={library: statistics.median(rates) / g for library, g in speeds.items()},
        peak_rss_bytes=max(run.peak_rss_bytes for run in runs),
        loss_difference=difference,
    )
