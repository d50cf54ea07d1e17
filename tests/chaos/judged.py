"""Chaos runs of tests: what was violated is a failure, and then the home is kept."""

import shutil

from tests.chaos.harness import catalogue, oracle, run
from tests.chaos.harness.run import Scenario, Verdict
from tests.chaos.harness.stack import Shape
from tests.fixtures.database import PostgresMissing, find_bin_folder, skip_or_fail


def executed(
    scenario: Scenario,
    database: str,
    *,
    seed: int,
    shape: Shape,
    checks: tuple[oracle.Check, ...] = (),
) -> Verdict:
    """Run a scenario and require that nothing was violated; the home is kept otherwise."""
    if database == "postgresql":
        _require_postgres()
    verdict = run.execute(scenario, seed=seed, database=database, shape=shape, checks=checks)
    assert not verdict.violations, f"{verdict.violations} (kept: {verdict.home})"
    shutil.rmtree(verdict.home, ignore_errors=True)
    return verdict


def planned(name: str, trials: int, database: str, *, seed: int) -> Verdict:
    plan = catalogue.PLANS[name]
    return executed(plan.make(trials), database, seed=seed, shape=plan.shape, checks=plan.checks)


def _require_postgres() -> None:
    try:
        find_bin_folder()
    except PostgresMissing as error:
        skip_or_fail(str(error))
