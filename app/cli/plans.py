"""Commands about memory: what a job would need, and what it needed."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output, tables
from app.cli.jobs import JobId, Overrides
from app.cli.output import Column, Mode, Output, View, duration, size

if TYPE_CHECKING:
    # Only names of types: what is behind them takes longer to load than help may take.
    from app.domain.memory import MemoryPart, MemoryReport, PhasePeak
    from app.domain.plans import Plan

app = typer.Typer()


@app.command()
def plan(
    file: Annotated[str, typer.Argument(help="YAML or JSON file of the job; - reads stdin.")],
    overrides: Overrides = None,
    mode: Output = Mode.TABLE,
) -> None:
    """Show what a job would do and need, without submitting it; its data set is uploaded."""
    actions = _actions()
    with actions.connect() as client:
        found = actions.plan(client, file, overrides or [])
    output.show_with_parts(found, _PLAN, found.memory.parts, _PART, mode)
    if mode is Mode.TABLE:
        for warning in found.warnings:
            output.warn(f"{warning.param}: {warning.message}")


@app.command()
def memory(job_id: JobId, mode: Output = Mode.TABLE) -> None:
    """Show the memory peaks of a job's newest attempt, phase by phase."""
    with _actions().connect() as client:
        report = client.memory(job_id)
    output.show_with_parts(report, _MEMORY, report.phases, _PHASE, mode)


def _actions():
    # Loaded by the command that runs, so that `lorad --help` stays quick.
    from app.cli import actions

    return actions


def _maybe(num_bytes: int | None) -> str | None:
    return None if num_bytes is None else size(num_bytes)


def _memory(plan: "Plan") -> str:
    low, high = size(plan.memory.low_bytes), size(plan.memory.high_bytes)
    return f"{size(plan.memory.expected_bytes)} ({low} to {high})"


_PART: "View[MemoryPart]" = View(
    identity=lambda part: part.name,
    columns=[
        Column("MEMORY", lambda part: part.name),
        Column("LOW", lambda part: size(part.low_bytes)),
        Column("EXPECTED", lambda part: size(part.expected_bytes)),
        Column("HIGH", lambda part: size(part.high_bytes)),
    ],
)

_PLAN: "View[Plan]" = View(
    identity=lambda plan: plan.spec.base_model,
    columns=[
        Column("MEMORY", _memory),
        Column("LIMIT", lambda plan: _maybe(plan.limit_bytes)),
        Column(
            "FITS",
            lambda plan: "yes" if plan.fits else "NO",
            lambda plan: tables.GOOD if plan.fits else tables.BAD,
        ),
        Column("LARGEST_BATCH", lambda plan: plan.largest_micro_batch_size),
        Column("STEPS", lambda plan: f"{plan.work.steps} ({plan.work.steps_per_epoch} per epoch)"),
        Column("ROWS", lambda plan: plan.work.num_rows),
        Column("TOKENS", lambda plan: f"{plan.work.tokens_per_epoch:,} per epoch"),
        Column("TARGETS", lambda plan: f"{plan.work.target_tokens_per_epoch:,} per epoch"),
        Column("TOKENS_PER_STEP", lambda plan: f"{plan.work.tokens_per_step:,.0f}"),
        Column("DISK", lambda plan: f"{size(plan.disk.total_bytes)}"),
        Column("FREE_DISK", lambda plan: size(plan.disk.free_bytes)),
        Column("TIME", lambda plan: duration(plan.time.total_seconds) if plan.time else None),
    ],
)

_PHASE: "View[PhasePeak]" = View(
    identity=lambda row: row.phase,
    columns=[
        Column("PHASE", lambda row: row.phase),
        Column("PEAK", lambda row: size(row.peak_bytes)),
    ],
)

_MEMORY: "View[MemoryReport]" = View(
    identity=lambda report: report.peak_bytes,
    columns=[
        Column("DEVICE", lambda report: report.device),
        Column("PEAK", lambda report: size(report.peak_bytes)),
        Column("EXPECTED", lambda report: _maybe(report.expected_bytes)),
        Column("LIMIT", lambda report: _maybe(report.limit_bytes)),
    ],
)
