"""One chaos run from its seed to its verdict: a home, a service, a scenario, the oracle."""

import json
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from app.domain.runs import EVENTS_FILE, RUN_FILE, attempt_folder
from tests.chaos.harness import evidence, oracle, processes
from tests.chaos.harness.databases import ChaosDatabase, Postgres, Sqlite
from tests.chaos.harness.evidence import Evidence
from tests.chaos.harness.load import Load
from tests.chaos.harness.nemeses import Strike
from tests.chaos.harness.stack import ChaosStack, Shape, Stuck

_SETTLE_SECONDS = 180.0
_END_SECONDS = 10.0
_SHARED_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 << 30


@dataclass
class Run:
    """What a scenario works with and adds to."""

    stack: ChaosStack
    load: Load
    rng: random.Random
    strikes: list[Strike] = field(default_factory=list[Strike])
    extra: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Violations that only the scenario can see, by name."""
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    """Figures that only the scenario can measure."""
    samples: list[str] = field(default_factory=list[str])
    _pairs: set[tuple[int, ...]] = field(default_factory=set[tuple[int, ...]])

    @property
    def num_counted(self) -> int:
        """Strikes that landed in work."""
        return sum(strike.counts for strike in self.strikes)

    def look(self) -> None:
        """Note two trainers at work on one job; one that is just dying is not at work any more."""
        by_job: defaultdict[str, list[int]] = defaultdict(list)
        for each in processes.trainers(self.load.accepted):
            if each.doing != "waiting":
                by_job[each.job_id].append(each.pid)
        now = {tuple(sorted(pids)) for pids in by_job.values() if len(pids) > 1}
        for pids in now & self._pairs:
            self.samples.append(f"two trainers at work on one job: {pids}")
        self._pairs = now


Scenario = Callable[[Run], None]


@dataclass(frozen=True)
class Verdict:
    """What came out of a run."""

    run: Run
    evidence: Evidence
    violations: dict[str, list[str]]
    recoveries: dict[str, list[float]]
    """Nemesis -> seconds from a blow to the next step of each job that it hit."""
    seconds: float
    home: Path
    """Kept when something was violated; gone otherwise."""


def execute(
    scenario: Scenario,
    *,
    seed: int,
    database: str,
    shape: Shape,
    checks: tuple[oracle.Check, ...] = (),
    folder: Path | None = None,
) -> Verdict:
    """Run a scenario and judge what it left.

    Args:
        scenario: Does the harm, and waits for what it wants to see itself.
        seed: Every choice of the run follows from it; when a process is hit does not.
        database: `sqlite` or `postgresql`.
        shape: How the service is laid out.
        checks: More checks than the oracle's own, for runs in which more has to hold.
        folder: Where the home is made; by default in memory where there is some.
    """
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="lorad-chaos-", dir=folder or _memory()))
    with _service(home, database, shape, seed) as run:
        try:
            scenario(run)
        except Stuck as error:
            run.extra["I1"].append(str(error))
        found = _settle(run)
        recoveries = _recoveries(run)
        broken = oracle.violations(found)
        for check in checks:
            lines = [line for job in found.jobs for line in check(job)]
            run.extra[check.__name__] += lines
        for name, lines in run.extra.items():
            if lines:
                broken.setdefault(name, []).extend(lines)
    if not broken:
        shutil.rmtree(home, ignore_errors=True)
    return Verdict(run, found, broken, recoveries, time.monotonic() - began, home)


@contextmanager
def _service(home: Path, database: str, shape: Shape, seed: int) -> Generator[Run]:
    made: ChaosDatabase = Sqlite(home) if database == "sqlite" else Postgres()
    stack = ChaosStack(home, made, shape)
    rng = random.Random(seed)
    run = Run(stack, Load(stack), rng)
    try:
        if shape.tier == "fast":
            run.load.place_model()
        stack.start_all()
        run.load.upload()
        yield run
    finally:
        stack.close()
        made.close()


def _settle(run: Run) -> Evidence:
    """Let everything end, then look at all of it."""
    database = run.stack.database
    if isinstance(database, Postgres):
        database.start()
    run.stack.revive()
    run.load.wait_for_all(seconds=_SETTLE_SECONDS)
    run.stack.revive()
    run.stack.wait_until(run.stack.api_answers, what="the API to answer", seconds=90)
    return evidence.collect(
        run.stack,
        list(run.load.accepted.values()),
        uploads=run.load.uploads,
        samples=run.samples,
        leftovers=_leftovers(run),
    )


def _recoveries(run: Run) -> dict[str, list[float]]:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for strike in run.strikes:
        for job_id in strike.job_ids if strike.counts else ():
            seconds = recovered_after(run.stack.home, job_id, strike.at)
            if seconds is not None:
                found[strike.nemesis].append(seconds)
    return dict(found)


def recovered_after(home: Path, job_id: str, struck_at: float) -> float | None:
    """Return the seconds from a blow to the first step of an attempt that began after it."""
    attempts = attempt_folder(home, job_id, 1).parent
    for folder in sorted(attempts.glob("*"), key=lambda path: int(path.name)):
        run_file, events = folder / RUN_FILE, folder / EVENTS_FILE
        if not events.exists() or run_file.stat().st_mtime < struck_at:
            continue
        for line in events.read_text().splitlines():
            with suppress(ValueError):  # the last line may be torn
                event = json.loads(line)
                if event["kind"] == "step":
                    return datetime.fromisoformat(event["at"]).timestamp() - struck_at
    return None


def _leftovers(run: Run) -> list[str]:
    """Return the trainers of ended jobs that are still there after a moment."""
    deadline = time.monotonic() + _END_SECONDS
    while True:
        ended = run.load.ended_ids()
        left = list(processes.trainers(ended))
        if not left or time.monotonic() > deadline:
            return [f"{each.job_id} has ended and its trainer {each.pid} has not" for each in left]
        time.sleep(0.1)


def _memory() -> Path | None:
    # Nothing here cuts the power, so the disk would only make the run slower.
    has_room = _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > _ROOM_BYTES
    return _SHARED_MEMORY if has_room else None
