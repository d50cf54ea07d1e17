"""The scenarios by name: how each lays out the service, and what more has to hold in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from tests.chaos.harness import nemeses, oracle
from tests.chaos.harness.chains import chains
from tests.chaos.harness.corruption import corruption
from tests.chaos.harness.failing import in_api, in_trainers, in_workers
from tests.chaos.harness.load import Work
from tests.chaos.harness.races import races
from tests.chaos.harness.recovery import recovery
from tests.chaos.harness.run import Scenario
from tests.chaos.harness.stack import Shape
from tests.chaos.harness.storm import storm
from tests.chaos.harness.streams import streams
from tests.chaos.harness.zombies import zombies


@dataclass(frozen=True)
class Plan:
    """A scenario without its number of trials."""

    make: Callable[[int], Scenario]
    """Takes the number of kills, or of trials."""
    shape: Shape = field(default_factory=Shape)
    checks: tuple[oracle.Check, ...] = ()
    """What has to hold beside the oracle."""
    only_on: str | None = None
    """The database that it needs."""


_CALM = (0.2, 1.0)
_OUTAGE_SECONDS = 60.0


def _long_work(rng: Random) -> Work:
    """Make a job of about a minute and a half, for outages that take as long."""
    return Work(seed=rng.randrange(2**31), num_steps=1500, save_steps=50, step_ms=50, save_ms=20)


def _medium_work(rng: Random) -> Work:
    """Make a job of a few seconds."""
    return Work(seed=rng.randrange(2**31), num_steps=150, save_steps=10, step_ms=20, save_ms=20)


def _outages(
    seconds: float, work: Callable[[Random], Work], pause_seconds: tuple[float, float]
) -> Callable[[int], Scenario]:
    strikes = {"outage": (nemeses.outage_of(seconds), 1.0)}
    return lambda kills: storm(strikes, kills=kills, work=work, pause_seconds=pause_seconds)


def _only(*names: str, pause_seconds: tuple[float, float]) -> Callable[[int], Scenario]:
    chosen = {name: nemeses.STRIKES[name] for name in names}
    return lambda kills: storm(chosen, kills=kills, pause_seconds=pause_seconds)


_ONCE = (oracle.several_starts,)
_REMOTE = Shape(profile="recovery", num_workers=5, slots=2, is_remote=True)
_RESTART = {"restart": (nemeses.restart_postgres, 1.0)}

PLANS: dict[str, Plan] = {
    "storm": Plan(lambda kills: storm(nemeses.KILLS, kills=kills), Shape(num_workers=3)),
    "drain": Plan(_only("drain", pause_seconds=_CALM), checks=(oracle.crashes,)),
    "valkey": Plan(
        _only("valkey", "valkey-flush", "valkey-full", pause_seconds=_CALM), checks=_ONCE
    ),
    "postgres-restart": Plan(
        lambda kills: storm(_RESTART, kills=kills, pause_seconds=_CALM),
        checks=_ONCE,
        only_on="postgresql",
    ),
    "postgres-outage": Plan(
        _outages(_OUTAGE_SECONDS, _long_work, (8.0, 12.0)), checks=_ONCE, only_on="postgresql"
    ),
    "postgres-blink": Plan(_outages(2.0, _medium_work, _CALM), checks=_ONCE, only_on="postgresql"),
    "recovery-remote": Plan(
        lambda kills: recovery("worker", kills=kills, every_seconds=4.0), _REMOTE
    ),
    "recovery-local": Plan(
        lambda kills: recovery("worker", kills=kills, every_seconds=4.0),
        replace(_REMOTE, is_remote=False),
    ),
    "recovery-trainer": Plan(
        lambda kills: recovery("trainer", kills=kills, every_seconds=0.5),
        replace(_REMOTE, is_remote=False, num_workers=2),
    ),
    "zombie": Plan(lambda kills: zombies(kills=kills), Shape(num_workers=4, slots=1)),
    "failpoints-trainer": Plan(lambda seeds: in_trainers(seeds=seeds), Shape(slots=3)),
    "failpoints-worker": Plan(lambda seeds: in_workers(seeds=seeds), Shape(num_workers=3)),
    "failpoints-api": Plan(lambda seeds: in_api(seeds=seeds), checks=_ONCE),
    "streams": Plan(lambda kills: streams(kills=kills), checks=_ONCE),
    "corruption": Plan(lambda trials: corruption(trials=trials), Shape(slots=3)),
    "chains": Plan(
        lambda trials: chains(trials=trials), Shape(tier="real", num_workers=1, slots=1)
    ),
    "races": Plan(
        lambda trials: races(trials=trials), Shape(slots=4), checks=(oracle.several_ends,)
    ),
}


def plan_of(names: Sequence[str]) -> Plan:
    """Return one scenario by its name, or a storm of the nemeses that are named.

    Raises:
        KeyError: There is no such scenario or nemesis; the message names it.
    """
    if len(names) == 1 and names[0] in PLANS:
        return PLANS[names[0]]
    chosen = {name: nemeses.STRIKES[name] for name in names}
    return Plan(lambda kills: storm(chosen, kills=kills), Shape(num_workers=3))
