"""A model of claim, lease, fence and reap, small enough that every interleaving can be tried.

Two workers, one job, one reaper. Time is counted in ticks; a heartbeat is due every tick, so time
stands still until each worker that can renew has done so. Workers are stopped (SIGSTOP), go on
(SIGCONT) and are killed at any moment; the database goes away and comes back. Whether a state may
follow another is asked of the product's own table.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from app.domain.jobs import OWNED_STATES, TERMINAL_STATES, Actor, JobState, check_transition

S = JobState
TTL = 2
GRACE = 1
MAX_CRASHES = 2
NUM_WORKERS = 2
FREE_FATES = 3  # how often, in one history, something is stopped, killed or away


class Worker(NamedTuple):
    """What a worker believes, which may be wrong."""

    fence: int = 0
    """Fence of the attempt it runs; 0 without one."""
    state: JobState = S.QUEUED
    """State it thinks its job is in."""
    saw: int | None = None
    """Fence of the queued job that it has read and not yet claimed."""
    is_stopped: bool = False
    froze: bool = False
    """Whether it was stopped since it last renewed."""
    has_renewed: bool = True
    """Whether it has renewed in this tick."""


class World(NamedTuple):
    state: JobState = S.QUEUED
    fence: int = 0
    owner: int | None = None
    lease: int = 0
    """Ticks until the lease ends, at least -GRACE."""
    crashes: int = 0
    has_checkpoint: bool = False
    is_up: bool = True
    reaper_waits: int = TTL
    reaper_saw: int | None = None
    """Fence of the job that the reaper has found to be expired and not yet settled."""
    fates: int = FREE_FATES
    workers: tuple[Worker, ...] = (Worker(),) * NUM_WORKERS


@dataclass(frozen=True)
class Rules:
    """What the product does; a negative control leaves one of them out."""

    checks_fence: bool = True
    claims_by_comparing: bool = True
    reaps_by_lease: bool = True
    reaper_waits: bool = True
    reaps: bool = True


class Broken(Exception):
    """A step did what no step may do."""


@dataclass
class Found:
    """What an exploration found."""

    num_states: int = 0
    violation: str | None = None
    trace: list[str] = field(default_factory=list)


Step = tuple[str, Callable[[], World | None]]


def explore(rules: Rules) -> Found:
    """Visit every state that can be reached, breadth first, so that a trace is a shortest one."""
    start = World()
    came_from: dict[World, tuple[World, str] | None] = {start: None}
    leads_to: dict[World, list[World]] = {}
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        leads_to[world] = []
        for name, take in steps(world, rules):
            try:
                after = take()
            except Broken as broken:
                trace = [*_trace(came_from, world), name]
                return Found(len(came_from), str(broken), trace)
            if after is None:
                continue
            leads_to[world].append(after)
            if after not in came_from:
                came_from[after] = (world, name)
                waiting.append(after)
    lost = _lost(leads_to)
    if lost is not None:
        return Found(
            len(came_from), "the job is lost: no end can be reached", _trace(came_from, lost)
        )
    return Found(len(came_from))


def _trace(came_from: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    names: list[str] = []
    while (step := came_from[world]) is not None:
        world, name = step
        names.append(name)
    return names[::-1]


def _lost(leads_to: dict[World, list[World]]) -> World | None:
    """Return the first state from which no path leads to a terminal one."""
    sources: dict[World, list[World]] = {}
    for world, afters in leads_to.items():
        for after in afters:
            sources.setdefault(after, []).append(world)
    waiting = deque(world for world in leads_to if world.state in TERMINAL_STATES)
    saved = set(waiting)
    while waiting:
        for world in sources.get(waiting.popleft(), []):
            if world not in saved:
                saved.add(world)
                waiting.append(world)
    return next((world for world in leads_to if world not in saved), None)


def steps(world: World, rules: Rules) -> Iterator[Step]:
    """Yield everything that can happen next; a step that cannot happen after all returns None."""
    for index, worker in enumerate(world.workers):
        if not worker.is_stopped and world.is_up:
            yield from _steps_of_worker(world, rules, index)
        yield from _fates_of_worker(world, index)
    if world.is_up and rules.reaps:
        yield "reaper: look", lambda: _look(world, rules)
        yield "reaper: settle", lambda: _settle(world, rules)
    yield "time passes", lambda: _tick(world)
    yield "database: away or back", lambda: _switch(world, rules)


def _steps_of_worker(world: World, rules: Rules, index: int) -> Iterator[Step]:
    name = f"worker {index}"
    worker = world.workers[index]
    if worker.fence == 0:
        yield f"{name}: sees the queued job", lambda: _see(world, index)
        yield f"{name}: claims", lambda: _claim(world, rules, index)
        return
    yield f"{name}: renews", lambda: _renew(world, rules, index)
    yield f"{name}: commits a checkpoint", lambda: _commit(world, rules, index)
    for target in (S.RUNNING, S.FINALIZING, S.SUCCEEDED, S.QUEUED):
        yield f"{name}: moves to {target}", lambda to=target: _move(world, rules, index, to)


def _fates_of_worker(world: World, index: int) -> Iterator[Step]:
    worker = world.workers[index]
    name = f"worker {index}"
    if worker.is_stopped:
        yield f"{name}: goes on", lambda: _with(world, index, worker._replace(is_stopped=False))
    elif world.fates and (worker.fence or worker.saw is not None):
        stopped = worker._replace(is_stopped=True, froze=True)
        fewer = world._replace(fates=world.fates - 1)
        yield f"{name}: is stopped", lambda: _with(fewer, index, stopped)
        yield f"{name}: is killed", lambda: _with(fewer, index, Worker())


def _with(world: World, index: int, worker: Worker) -> World:
    workers = list(world.workers)
    workers[index] = worker
    return world._replace(workers=tuple(workers))


def _see(world: World, index: int) -> World | None:
    if world.state is not S.QUEUED:
        return None
    return _with(world, index, world.workers[index]._replace(saw=world.fence))


def _claim(world: World, rules: Rules, index: int) -> World | None:
    saw = world.workers[index].saw
    if saw is None:
        return None
    if rules.claims_by_comparing:
        if world.state is not S.QUEUED:
            return _with(world, index, Worker())
        fence = world.fence + 1
        check_transition(world.state, S.STARTING, Actor.WORKER)
    else:
        fence = saw + 1
    taken = world._replace(state=S.STARTING, fence=fence, owner=index, lease=TTL)
    return _with(taken, index, Worker(fence=fence, state=S.STARTING))


def _is_accepted(world: World, rules: Rules, index: int) -> bool:
    """Tell whether the WHERE of a write lets it pass, and whether it should have.

    Raises:
        Broken: The write passes and must not.
    """
    worker = world.workers[index]
    if world.state not in OWNED_STATES or (rules.checks_fence and worker.fence != world.fence):
        return False
    if worker.fence < world.fence:
        raise Broken(f"a write of fence {worker.fence} is accepted although {world.fence} exists")
    for other, each in enumerate(world.workers):
        if other != index and each.fence == worker.fence:
            raise Broken(f"two workers write under fence {worker.fence}")
    return True


def _renew(world: World, rules: Rules, index: int) -> World | None:
    if not _is_accepted(world, rules, index):
        return _with(world, index, Worker())  # fenced: it kills its trainer and forgets the job
    worker = world.workers[index]._replace(froze=False, has_renewed=True)
    return _with(world._replace(lease=TTL), index, worker)


def _commit(world: World, rules: Rules, index: int) -> World | None:
    if world.workers[index].state is not S.RUNNING or world.has_checkpoint:
        return None
    if not _is_accepted(world, rules, index):
        return _with(world, index, Worker())
    return world._replace(has_checkpoint=True, crashes=0)


def _move(world: World, rules: Rules, index: int, target: JobState) -> World | None:
    worker = world.workers[index]
    order = {S.RUNNING: S.STARTING, S.FINALIZING: S.RUNNING, S.SUCCEEDED: S.FINALIZING}
    if target in order and worker.state is not order[target]:
        return None
    if not _is_accepted(world, rules, index):
        return _with(world, index, Worker())
    if target is S.QUEUED:  # its trainer died
        after = _crashed(world, Actor.SUPERVISOR)
        return _with(after, index, Worker())
    if world.state is not worker.state:
        return _with(world, index, Worker())
    check_transition(world.state, target, Actor.SUPERVISOR)
    if target in TERMINAL_STATES:
        return _with(world._replace(state=target, owner=None, lease=0), index, Worker())
    return _with(world._replace(state=target), index, worker._replace(state=target))


def _crashed(world: World, actor: Actor) -> World:
    crashes = world.crashes + 1
    target = S.FAILED if crashes >= MAX_CRASHES else S.QUEUED
    check_transition(world.state, target, actor)
    return world._replace(state=target, owner=None, lease=0, crashes=crashes)


def _is_expired(world: World, rules: Rules) -> bool:
    if world.state not in OWNED_STATES:
        return False
    return world.lease <= -GRACE or not rules.reaps_by_lease


def _look(world: World, rules: Rules) -> World | None:
    if world.reaper_waits or world.reaper_saw is not None or not _is_expired(world, rules):
        return None
    return world._replace(reaper_saw=world.fence)


def _settle(world: World, rules: Rules) -> World | None:
    if world.reaper_saw is None:
        return None
    after = world._replace(reaper_saw=None)
    if world.reaper_saw != world.fence or not _is_expired(world, rules):
        return after
    for worker in world.workers:
        if worker.fence == world.fence and not worker.is_stopped and not worker.froze:
            raise Broken("a worker that renews whenever it can is reaped")
    return _crashed(after, Actor.RECONCILER)


def _tick(world: World) -> World | None:
    late = [each for each in world.workers if each.fence and not each.is_stopped]
    if world.is_up and not all(each.has_renewed for each in late):
        return None
    is_owned = world.state in OWNED_STATES
    return world._replace(
        lease=max(-GRACE, world.lease - 1) if is_owned else 0,
        reaper_waits=max(0, world.reaper_waits - 1) if world.is_up else world.reaper_waits,
        workers=tuple(each._replace(has_renewed=not each.fence) for each in world.workers),
    )


def _switch(world: World, rules: Rules) -> World | None:
    if not world.is_up:
        return world._replace(is_up=True, reaper_waits=TTL if rules.reaper_waits else 0)
    if not world.fates:
        return None
    # What the reaper has read is gone with its transaction's error.
    return world._replace(is_up=False, fates=world.fates - 1, reaper_saw=None)
