"""Which mutants are caught: every mutant against its tests, in a copy of the project."""

import queue
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.mutants.confined import HANG
from bench.mutants.mutant import Mutant, Stale
from bench.mutants.project import CannotRun, Copy, Project, Run

_BASELINE_SECONDS = 1800.0
# Exit codes of pytest with which it has run what it was given: all passed, some failed.
_RAN = (0, 1)
_FIRST_SIGNAL = 128


class Verdict(StrEnum):
    """What became of a mutant."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    STALE = "stale"
    """The text to change is not there any more: the mutant has to be written anew."""
    UNFOUNDED = "unfounded"
    """Its tests do not pass without it, so their failing with it says nothing."""
    ERROR = "error"
    """The tests could not be run with it."""


@dataclass(frozen=True)
class Result:
    """A mutant and what became of it."""

    mutant: Mutant
    verdict: Verdict
    seconds: float = 0.0
    by: str | None = None
    """The test that caught it."""
    how: str = ""
    """`failed`, `hang` (the test did not end), or `crash` (the test process died)."""
    why: str = ""
    """What the test said, in one line: a NameError, for one, would be a bad mutant."""
    note: str = ""
    """Why there is no verdict, or which of its tests were left out."""


# (expression of -k, node id with its parameters) -> outcome without any fault.
Baseline = Mapping[tuple[str, str], str]


def examine(
    project: Project,
    mutants: Sequence[Mutant],
    *,
    jobs: int = 1,
    tell: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Examine mutants, in copies that are removed at the end.

    Args:
        project: Where the faults are put in.
        mutants: What to examine.
        jobs: Copies that are worked with at the same time.
        tell: Called with every result when it is there.

    Raises:
        CannotRun: The tests cannot be run even without a fault.
    """
    with ExitStack() as stack:
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        copies = [_make_copy(project, stack) for _ in range(jobs)]
        baseline = take_baseline(copies[0], mutants)
        for copy in copies:
            free.put(copy)

        def one(mutant: Mutant) -> Result:
            copy = free.get()
            try:
                result = judge(copy, mutant, baseline)
            finally:
                free.put(copy)
            tell(result)
            return result

        workers = ThreadPoolExecutor(jobs)
        try:
            return list(workers.map(one, mutants))
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.stop()
            workers.shutdown()


def take_baseline(copy: Copy, mutants: Sequence[Mutant]) -> dict[tuple[str, str], str]:
    """Run the tests of all mutants without any fault.

    Raises:
        CannotRun: One of them does not exist, or the copy is not what they import.
    """
    copy.require_own_packages()
    found: dict[tuple[str, str], str] = {}
    for select in dict.fromkeys(mutant.select for mutant in mutants):
        tests = list(
            dict.fromkeys(t for mutant in mutants if mutant.select == select for t in mutant.tests)
        )
        run = copy.run(tests, select=select, seconds=_BASELINE_SECONDS, stops_at_first=False)
        if run.exit_code not in _RAN:
            raise CannotRun(f"pytest ended with {run.exit_code}:\n{run.log}")
        found |= {(select, name): outcome for name, outcome in run.outcomes.items()}
    return found


def judge(copy: Copy, mutant: Mutant, baseline: Baseline) -> Result:
    """Put one mutant in and see whether its tests notice."""
    outcomes = {test: _without_fault(mutant, test, baseline) for test in mutant.tests}
    sound = [test for test, found in outcomes.items() if found == "passed"]
    left_out = ", ".join(
        f"{found} without it: {test}" for test, found in outcomes.items() if found != "passed"
    )
    if not sound:
        return Result(mutant, Verdict.UNFOUNDED, note=left_out)
    try:
        with copy.changed(mutant):
            run = copy.run(sound, select=mutant.select, seconds=mutant.seconds, stops_at_first=True)
    except Stale as error:
        return Result(mutant, Verdict.STALE, note=str(error))
    return _result(mutant, run, left_out)


def _without_fault(mutant: Mutant, test: str, baseline: Baseline) -> str:
    """Return failed, passed or skipped; a test of several parameters is all of them."""
    found = {
        outcome
        for (select, name), outcome in baseline.items()
        if select == mutant.select and (name == test or name.startswith(f"{test}["))
    }
    return next((each for each in ("failed", "passed") if each in found), "skipped")


def _result(mutant: Mutant, run: Run, note: str) -> Result:
    how, by = None, run.last_started
    if run.first_failed is not None:
        how, by = "failed", run.first_failed
    elif run.exit_code == HANG:
        how = "hang"
    elif run.exit_code >= _FIRST_SIGNAL:
        how = "crash"
    if how is not None:
        return Result(mutant, Verdict.CAUGHT, run.seconds, by, how, run.why, note)
    if run.exit_code == 0:
        return Result(mutant, Verdict.SURVIVED, run.seconds, note=note)
    return Result(mutant, Verdict.ERROR, run.seconds, note=run.log.strip())


def _make_copy(project: Project, stack: ExitStack) -> Copy:
    # A short path, whatever TMPDIR says: unix sockets have about a hundred bytes.
    folder = tempfile.TemporaryDirectory(prefix="mutants-", dir="/tmp", ignore_cleanup_errors=True)
    return Copy(project, Path(stack.enter_context(folder)))
