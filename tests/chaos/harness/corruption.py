"""Damage to checkpoints on disk: it is never loaded, and a good one is fallen back to."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from app.domain.checkpoints import ADAPTER_FILES, MANIFEST_NAME, STATE_FILES
from app.domain.runs import checkpoint_folder
from tests.chaos.harness import databases
from tests.chaos.harness.load import Accepted, Work
from tests.chaos.harness.run import Run, Scenario

_FILES = (*ADAPTER_FILES, *STATE_FILES)
_SAVE_STEPS = 5
_GOOD = """
SELECT step, attempt FROM checkpoints
WHERE job_id = :job_id AND status = 'committed' AND NOT superseded ORDER BY step DESC"""
_START = "SELECT start_step FROM attempts WHERE job_id = :job_id ORDER BY attempt DESC LIMIT 1"
_STATUS = """
SELECT status, corrupt_reason FROM checkpoints WHERE job_id = :job_id AND step = :step
AND attempt = :attempt"""


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint and where it lies."""

    step: int
    attempt: int
    folder: Path


def flip(target: Saved, others: Sequence[Saved], rng: random.Random) -> bool:
    """Change one bit of one file, the manifest included."""
    file = target.folder / rng.choice((*_FILES, MANIFEST_NAME))
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return True


def truncate(target: Saved, others: Sequence[Saved], rng: random.Random) -> bool:
    """Cut the end off one file, down to nothing."""
    file = target.folder / rng.choice((*_FILES, MANIFEST_NAME))
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])
    return True


def swap(target: Saved, others: Sequence[Saved], rng: random.Random) -> bool:
    """Exchange the contents of two files of the folder."""
    one, other = rng.sample(_FILES, 2)
    first, second = (target.folder / one).read_bytes(), (target.folder / other).read_bytes()
    (target.folder / one).write_bytes(second)
    (target.folder / other).write_bytes(first)
    return True


def delete(target: Saved, others: Sequence[Saved], rng: random.Random) -> bool:
    """Remove one file."""
    (target.folder / rng.choice((*_FILES, MANIFEST_NAME))).unlink()
    return True


def stale_manifest(target: Saved, others: Sequence[Saved], rng: random.Random) -> bool:
    """Put the manifest of another step in place."""
    source = rng.choice(others) if others else None
    return source is not None and _copy(source, target, (MANIFEST_NAME,))


def other_file(target: Saved, others: Sequence[Saved], rng: random.Random) -> bool:
    """Put one file of another step in place, as a save that was cut short in place would."""
    source = rng.choice(others) if others else None
    names = ("adapter_model.safetensors", *STATE_FILES)
    return source is not None and _copy(source, target, (rng.choice(names),))


def other_folder(target: Saved, others: Sequence[Saved], rng: random.Random) -> bool:
    """Put the whole content of another step in place: complete, consistent, and wrong."""
    source = rng.choice(others) if others else None
    return source is not None and _copy(source, target, (*_FILES, MANIFEST_NAME))


DAMAGES: dict[str, Callable[[Saved, Sequence[Saved], random.Random], bool]] = {
    "flip": flip,
    "truncate": truncate,
    "swap": swap,
    "delete": delete,
    "stale manifest": stale_manifest,
    "file of another step": other_file,
    "folder of another step": other_folder,
}


def corruption(*, trials: int, num_jobs: int = 4) -> Scenario:
    """Return the scenario that pauses jobs, damages checkpoints, and resumes from the newest.

    Every job goes on to its end in the last round, where its adapter tells whether anything
    damaged was ever loaded.
    """

    def scenario(run: Run) -> None:
        done: Counter[str] = Counter()
        run.figures |= {"fallbacks": 0, "nothing_left": 0}
        while done.total() < trials:
            jobs = [_job(run) for _ in range(num_jobs)]
            while jobs and done.total() < trials:
                jobs = [job for job in jobs if _pause(run, job)]
                for job in jobs:
                    done.update(_damage_and_resume(run, job))
                run.look()
            for job in jobs:
                run.load.wait_for(job, ("succeeded", "failed"), seconds=120)
        run.figures["damaged"] = dict(done)

    return scenario


def _job(run: Run) -> Accepted:
    return run.load.submit(
        Work(
            seed=run.rng.randrange(2**31),
            num_steps=200,
            save_steps=_SAVE_STEPS,
            step_ms=2,
            save_ms=0,
            save_total_limit=None,
        )
    )


def _pause(run: Run, job: Accepted) -> bool:
    """Let a job do some steps, and pause it; False when it was done before."""

    def is_far_enough() -> bool:
        state = run.load.state(job)
        return state in ("succeeded", "failed") or len(_saved(run, job)) >= 3

    run.stack.wait_until(is_far_enough, what=f"checkpoints of {job.job_id}", seconds=60, poll=0.01)
    run.load.ask(job, "pause")
    return run.load.wait_for(job, ("paused", "succeeded", "failed")) == "paused"


def _damage_and_resume(run: Run, job: Accepted) -> list[str]:
    """Damage the newest checkpoints, resume, and see where the job starts."""
    saved = _saved(run, job)
    num = run.rng.randint(1, max(1, min(4, len(saved) - 1)))
    if run.rng.random() < 0.03:
        num = len(saved)
    kinds: list[str] = []
    damaged: set[Saved] = set()
    # From the oldest, so that what is copied from is still good.
    for target in reversed(saved[:num]):
        kind = run.rng.choice(list(DAMAGES))
        others = [each for each in saved if each is not target and each not in damaged]
        before = _content(target.folder)
        if not DAMAGES[kind](target, others, run.rng) or _content(target.folder) == before:
            kind = "flip"  # nothing to copy from, or equal files: one that is always possible
            flip(target, others, run.rng)
        kinds.append(kind)
        damaged.add(target)
    good = [each for each in saved if each not in damaged]
    _resume(run, job, good[0] if good else None)
    _require_told(run, job, [each for each in damaged if not good or each.step > good[0].step])
    return kinds


def _resume(run: Run, job: Accepted, newest_good: Saved | None) -> None:
    answer = run.load.ask(job, "resume")
    if newest_good is None:
        # Nothing to go on with: that is said, and only the user may decide to start again.
        run.figures["nothing_left"] += 1
        if answer.status_code != 409:
            run.extra["I5"].append(f"{job.job_id} resumed from nothing: {answer.text}")
            return
        answer = run.load.ask(job, "resume", {"from_scratch": True})
    if answer.status_code >= 300:
        run.extra["I5"].append(
            f"{job.job_id} has a good checkpoint and does not go on: {answer.text}"
        )
        return
    run.load.wait_for(job, ("running", "finalizing", "succeeded", "failed"))
    with databases.reading(run.stack.database.url) as connection:
        start = connection.execute(text(_START), {"job_id": job.job_id}).scalar_one()
    wanted = 0 if newest_good is None else newest_good.step
    run.figures["fallbacks"] += newest_good is not None
    if start != wanted:
        run.extra["I5"].append(
            f"{job.job_id} started at step {start}; its newest good checkpoint was {wanted}"
        )


def _require_told(run: Run, job: Accepted, damaged: Sequence[Saved]) -> None:
    """Each damaged checkpoint that was looked at is marked, with the reason."""
    with databases.reading(run.stack.database.url) as connection:
        for each in damaged:
            values = {"job_id": job.job_id, "step": each.step, "attempt": each.attempt}
            row = connection.execute(text(_STATUS), values).one()
            if row.status != "corrupt" or not row.corrupt_reason:
                run.extra["I5"].append(f"{job.job_id}: damaged checkpoint {each.step} is {row}")


def _saved(run: Run, job: Accepted) -> list[Saved]:
    """Return the committed checkpoints of a job's branch, newest first."""
    with databases.reading(run.stack.database.url) as connection:
        rows = connection.execute(text(_GOOD), {"job_id": job.job_id}).all()
    home = run.stack.home
    return [Saved(s, a, checkpoint_folder(home, job.job_id, a, s)) for s, a in rows]


def _copy(source: Saved, target: Saved, names: Sequence[str]) -> bool:
    for name in names:
        shutil.copyfile(source.folder / name, target.folder / name)
    return True


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
