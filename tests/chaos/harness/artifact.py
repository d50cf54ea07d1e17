"""What a run writes down: counts, where blows landed, latencies, violations, and how to replay."""

import importlib.metadata
import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos.harness.nemeses import Strike
from tests.chaos.harness.run import Verdict

_LIBRARIES = ("celery", "numpy", "psycopg", "pydantic", "redis", "sqlalchemy")
_MOST_LINES = 20


def summarize(verdict: Verdict, *, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return all that is worth keeping of a run as JSON values."""
    strikes = verdict.run.strikes
    jobs = verdict.evidence.jobs
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": arguments,
        "seconds": round(verdict.seconds, 1),
        "strikes": len(strikes),
        "counted": verdict.run.num_counted,
        "by_nemesis": dict(Counter(strike.nemesis for strike in strikes)),
        "counted_by_nemesis": dict(Counter(each.nemesis for each in strikes if each.counts)),
        "landed_in": _landed(strikes),
        "recovery_seconds": {
            name: spread(values) for name, values in verdict.recoveries.items() if values
        },
        "jobs": len(jobs),
        "states": dict(Counter(job.state for job in jobs)),
        "attempts": sum(len(job.attempts) for job in jobs),
        "steps_done_again": sum(job.job["replayed_steps"] for job in jobs if job.job),
        "answers": {str(code): num for code, num in sorted(verdict.run.load.answers.items())},
        "figures": verdict.run.figures,
        "violations": {
            name: {"count": len(lines), "first": lines[:_MOST_LINES]}
            for name, lines in verdict.violations.items()
        },
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
    }


def write(summary: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile (the next value above it) and maximum of durations."""
    ordered = sorted(values)
    # The smallest value that at least 99 % of all are not above.
    index = max(0, -(-99 * len(ordered) // 100) - 1)
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[index], 3),
        "max": round(ordered[-1], 3),
    }


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
    }


def _landed(strikes: Sequence[Strike]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for strike in strikes:
        found.setdefault(strike.nemesis, Counter())[strike.doing] += 1
    return {name: dict(counts) for name, counts in found.items()}
