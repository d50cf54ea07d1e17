# pyright: basic, reportMissingTypeStubs=false
"""What strikes at a running service: each nemesis does one kind of harm, and says what it hit."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis

from tests.chaos.harness import processes
from tests.chaos.harness.databases import Postgres
from tests.chaos.harness.load import Load
from tests.chaos.harness.processes import BUSY, Doing, Trainer
from tests.chaos.harness.stack import API, VALKEY, ChaosStack


@dataclass(frozen=True)
class Strike:
    """One blow."""

    nemesis: str
    at: float
    """Seconds since 1970."""
    victim: str
    doing: Doing
    """What the work was in that it interrupted; of a service process, the busiest trainer's."""
    job_ids: tuple[str, ...]
    """Jobs whose attempts it ended, if it ends any."""

    @property
    def counts(self) -> bool:
        return self.doing in BUSY


_RANKED: tuple[Doing, ...] = ("save", "finish", "step", "between", "start", "waiting")
Nemesis = Callable[[ChaosStack, Load, random.Random], Strike | None]


def kill_trainer(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """SIGKILL a trainer in a step or a save; it is frozen first, so that the record is exact."""
    busy = [each for each in processes.trainers(load.accepted) if each.doing in BUSY]
    if not busy:
        return None
    # Saves are rarer than steps and more interesting.
    saving = [each for each in busy if each.doing != "step"]
    victim = rng.choice(saving if saving and rng.random() < 0.5 else busy)
    seen = processes.frozen(victim, stack.home)
    at = time.time()
    if seen is None:
        return None
    processes.kill(seen.pid)
    return Strike("trainer", at, f"trainer {seen.pid}", seen.doing, (seen.job_id,))


def kill_worker(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """SIGKILL the main process of a worker; what is below it has to end by itself."""
    name = _running_worker(stack, rng)
    if name is None:
        return None
    pid = stack.processes[name].pid
    busy = _trainers_below(pid, load)
    at = time.time()
    stack.kill(name)
    return Strike("worker", at, name, _busiest(busy), tuple(each.job_id for each in busy))


def kill_fork_server(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """SIGKILL the process that trainers are forked from; they die with it."""
    name = _running_worker(stack, rng)
    server = None if name is None else processes.fork_server(stack.processes[name].pid)
    if name is None or server is None:
        return None
    busy = _trainers_below(stack.processes[name].pid, load)
    at = time.time()
    processes.kill(server)
    return Strike("fork server", at, name, _busiest(busy), tuple(each.job_id for each in busy))


def kill_api(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """SIGKILL the API, and the reconciler with it."""
    return _kill_service(stack, load, API)


def kill_valkey(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """SIGKILL Valkey; half of the times it comes back without what it kept."""
    strike = _kill_service(stack, load, VALKEY)
    if strike is not None and rng.random() < 0.5:
        stack.wipe_valkey()
    return strike


def flush_valkey(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """Remove every key."""
    return _tell_valkey(stack, load, "valkey flush", lambda server: server.flushall())


def fill_valkey(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """Let Valkey refuse every write for a moment, as one that is full does."""

    def fill(server: redis.Redis) -> None:
        server.config_set("maxmemory", 1)
        time.sleep(rng.uniform(0.2, 0.8))
        server.config_set("maxmemory", 0)

    return _tell_valkey(stack, load, "valkey full", fill)


def kill_all(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """SIGKILL every process at once."""
    busy = processes.trainers(load.accepted)
    at = time.time()
    stack.kill_everything()
    return Strike(
        "whole tree", at, "everything", _busiest(busy), tuple(each.job_id for each in busy)
    )


def drain_worker(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """SIGTERM a worker; it saves its jobs and gives them back."""
    name = _running_worker(stack, rng)
    if name is None:
        return None
    busy = _trainers_below(stack.processes[name].pid, load)
    if not busy:
        return None
    at = time.time()
    stack.kill(name, signal.SIGTERM)
    return Strike("drain", at, name, _busiest(busy), tuple(each.job_id for each in busy))


def restart_postgres(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
    """Stop PostgreSQL, fast or at once, and start it again."""
    return _without_postgres(stack, load, "postgres restart", 0.0, rng.random() < 0.5)


def outage_of(seconds: float) -> Nemesis:
    """Return the nemesis that takes PostgreSQL away for a while."""

    def strike(stack: ChaosStack, load: Load, rng: random.Random) -> Strike | None:
        return _without_postgres(stack, load, "postgres outage", seconds, rng.random() < 0.5)

    return strike


KILLS: dict[str, tuple[Nemesis, float]] = {
    "trainer": (kill_trainer, 60),
    "worker": (kill_worker, 12),
    "fork-server": (kill_fork_server, 10),
    "api": (kill_api, 6),
    "valkey": (kill_valkey, 6),
    "valkey-flush": (flush_valkey, 3),
    "valkey-full": (fill_valkey, 1),
    "tree": (kill_all, 2),
}
STRIKES: dict[str, tuple[Nemesis, float]] = {**KILLS, "drain": (drain_worker, 2)}
"""Name -> nemesis and how often it strikes in a mixed run."""


def _running_worker(stack: ChaosStack, rng: random.Random) -> str | None:
    running = [name for name in stack.workers if stack.is_running(name)]
    return rng.choice(running) if running else None


def _trainers_below(pid: int, load: Load) -> Sequence[Trainer]:
    below = {child.pid for child in processes.children(pid, recursive=True)}
    return [each for each in processes.trainers(load.accepted) if each.pid in below]


def _busiest(trainers: Sequence[Trainer]) -> Doing:
    found = [each.doing for each in trainers]
    ranked: list[Doing] = [doing for doing in _RANKED if doing in found]
    return ranked[0] if ranked else "idle"


def _kill_service(stack: ChaosStack, load: Load, name: str) -> Strike | None:
    if not stack.is_running(name):
        return None
    busy = processes.trainers(load.accepted)
    at = time.time()
    stack.kill(name)
    return Strike(name, at, name, _busiest(busy), ())


def _tell_valkey(
    stack: ChaosStack, load: Load, name: str, work: Callable[[redis.Redis], Any]
) -> Strike | None:
    busy = processes.trainers(load.accepted)
    at = time.time()
    with suppress(redis.RedisError), stack.redis() as server:
        work(server)
        return Strike(name, at, VALKEY, _busiest(busy), ())
    return None


def _without_postgres(
    stack: ChaosStack, load: Load, name: str, seconds: float, immediately: bool
) -> Strike | None:
    database = stack.database
    if not isinstance(database, Postgres):
        return None
    busy = processes.trainers(load.accepted)
    at = time.time()
    database.stop(immediately=immediately)
    time.sleep(seconds)
    database.start()
    how = "immediate" if immediately else "fast"
    return Strike(name, at, f"postgres ({how})", _busiest(busy), ())


def suspend(pids: Sequence[int]) -> None:
    """SIGSTOP processes."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def resume(pids: Sequence[int]) -> None:
    """SIGCONT processes."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
