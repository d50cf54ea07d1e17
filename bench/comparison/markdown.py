"""A table as markdown, and its place in docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.comparison.cases import REFERENCE, SYSTEMS, Column
from bench.comparison.figures import Figures, Spread

HEADER = """# Benchmarks

`python bench/compare.py --data ROWS.jsonl` trains the same rows with lorad and with the trainers
that people use, each in a virtual environment of its own, and writes the tables of this page. All
systems get the same tokens, the same initial adapter, float32, AdamW at a constant rate, no
gradient checkpointing, and take turns: A B C D A B C D. Each run is a process of its own; lorad's
is the product's trainer. A step lasts from the end of the step before to its own end. Figures are
medians over rounds, with the lowest and the highest.

- **As people run them**: the peer's own defaults but float32 and no checkpointing.
- **Everything given**: also the variables that lorad sets for its trainers (allocator thresholds,
  short spinning of waiting threads). lorad is one and the same run in both.
- **lorad is faster by** compares the time for the same useful work: where the batches are the same
  that is the ratio of the times, elsewhere the floating-point operations that the rows need
  are divided by the time. Padding is no useful work.
- **Of floor**: time that the needed operations take at the speed of this machine's matrix products
  on the model's own shapes, over the time measured. Two libraries, two floors:
  torch's own product, and oneDNN's, which lorad uses on AMD processors.
- A row is void where its batches are lorad's and its losses differ by more than 1e-4 of them.
"""

_COLUMNS = (
    "System",
    "Sup. tokens/s, as people run it",
    "lorad is faster by",
    "Sup. tokens/s, everything given",
    "lorad is faster by",
    "s/step",
    "CPU s/step",
    "Of floor",
    "Peak RSS",
    "lorad's RSS is",
    "Losses differ",
)


def section(title: str, facts: Mapping[str, Any], figures: Sequence[Figures]) -> str:
    """Return a table with its heading, its circumstances, and what could not be measured."""
    libraries = " / ".join(facts["gflops"])
    parts = [
        f"## {title}",
        f"{facts['date'][:10]}, {facts['machine']}, {facts['num_threads']} threads;"
        f" {facts['model']}, rows of {facts['data']}; {facts['num_rounds']} rounds of"
        f" {facts['num_measured']} steps after {facts['num_warmup']} of warm-up. Versions:"
        f" {_versions(facts['versions'])}.",
        f"Matrix products of the model's shapes: {_speeds(facts['gflops'])}. Seconds, floor and"
        " memory are those of the column at the right, where a system has it. Of floor:"
        f" {libraries}.",
        _table(figures),
    ]
    reasons = [
        f"- {_title(f.system)}, {_column(f.column)}: {f.problem}" for f in figures if f.problem
    ]
    reasons += [f"- {_title(name)}: not measured: {why}" for name, why in facts["skipped"].items()]
    if reasons:
        parts.append("\n".join(reasons))
    return "\n\n".join(parts) + "\n"


def placed(document: str, name: str, text: str) -> str:
    """Return the document with the section of a table put in, in place of an older one."""
    return with_section(
        document, text, f"<!-- compare: table {name} -->", f"<!-- end of table {name} -->"
    )


def with_section(document: str, text: str, begin: str, end: str) -> str:
    """Return the document with a section between its marks, in place of an older one or at the end.

    Raises:
        ValueError: The section of the document has no end.
    """
    block = f"{begin}\n{text}{end}"
    before, found, rest = document.partition(begin)
    if not found:
        return f"{document.rstrip()}\n\n{block}\n"
    _, closed, after = rest.partition(end)
    if not closed:
        raise ValueError(f"{begin!r} has no {end!r} after it; repair the document by hand")
    return f"{before}{block}{after}"


def _table(figures: Sequence[Figures]) -> str:
    by_key = {(f.system, f.column): f for f in figures}
    ours = by_key.get((REFERENCE, "given"))
    lines = [_line(_COLUMNS), _line(["---", *["---:"] * (len(_COLUMNS) - 1)])]
    for system in dict.fromkeys(f.system for f in figures):
        as_run, given = by_key.get((system, "as_run")), by_key.get((system, "given"))
        if system == REFERENCE:
            as_run = given
        lines.append(_line(_cells(system, as_run, given, ours)))
    return "\n".join(lines)


def _cells(
    system: str, as_run: Figures | None, given: Figures | None, ours: Figures | None
) -> list[str]:
    shown = given if given and not given.problem else as_run
    cells = [
        _title(system),
        _spread(as_run and as_run.targets_per_second, as_run, digits=0),
        _spread(as_run and as_run.times_slower, as_run, digits=2, unit="x"),
        _spread(given and given.targets_per_second, given, digits=0),
        _spread(given and given.times_slower, given, digits=2, unit="x"),
    ]
    if shown is None or shown.problem or shown.step_seconds is None or shown.cpu_seconds is None:
        return [*cells, *["-"] * 6]
    share = "-"
    if ours and ours.peak_rss_bytes and system != REFERENCE:
        share = f"{ours.peak_rss_bytes / shown.peak_rss_bytes:.2f}"
    difference = shown.loss_difference
    return [
        *cells,
        f"{shown.step_seconds.median:.2f}",
        f"{shown.cpu_seconds.median:.2f}",
        " / ".join(f"{fraction:.2f}" for fraction in shown.of_floor.values()),
        f"{shown.peak_rss_bytes / 1e9:.2f} GB",
        share,
        "other batches"
        if difference is None
        else ""
        if system == REFERENCE
        else f"{difference:.0e}",
    ]


def _spread(spread: Spread | None, figures: Figures | None, *, digits: int, unit: str = "") -> str:
    if figures is not None and figures.problem:
        return figures.problem.partition(":")[0]
    if spread is None:
        return "-"
    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
    return f"{spread.median:.{digits}f}{unit} ({low}-{high})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _title(system: str) -> str:
    return SYSTEMS[system].title


def _column(column: Column) -> str:
    return {"as_run": "as people run it", "given": "everything given"}[column]


def _versions(versions: Mapping[str, Mapping[str, str]]) -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{package} {number}" for package, number in packages.items())
        for name, packages in versions.items()
    )


def _speeds(gflops: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(
        f"{name} {speed['median']:.0f} GFLOP/s ({speed['low']:.0f}-{speed['high']:.0f})"
        for name, speed in gflops.items()
    )
