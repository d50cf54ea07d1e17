"""The oracle sees each kind of harm: a record without fault passes, and each fault is named."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from app.domain.checkpoints import Manifest
from app.domain.runs import checkpoint_folder
from tests.chaos.harness import oracle, streams
from tests.chaos.harness.databases import install_journal
from tests.chaos.harness.evidence import Evidence, JobEvidence, Metric
from tests.chaos.harness.fast_model import FastModel
from tests.chaos.harness.load import Accepted, Work
from worker.training.commit import commit

JOB = "job-0123456789ab0123456789ab"
WORK = Work(seed=5, num_steps=4, save_steps=2)
MOVES = [
    "queued",
    "starting",
    "running",
    "queued",
    "starting",
    "running",
    "finalizing",
    "succeeded",
]
Doctor = Callable[[JobEvidence], JobEvidence]


def moved(states: list[str]) -> list[dict[str, Any]]:
    """Return the journal rows of a way through the states; claims raise the fence."""
    rows: list[dict[str, Any]] = []
    fence = 0
    for before, after in pairwise(states):
        claim = after == "starting"
        rows.append(
            {
                "what": "state",
                "old_state": before,
                "new_state": after,
                "fence": fence,
                "current_fence": fence + claim,
                "is_adopted": None,
            }
        )
        fence += claim
    return rows


def written(fence: int, current: int, *, adopted: int = 0) -> dict[str, Any]:
    return {
        "what": "trainer_events",
        "fence": fence,
        "current_fence": current,
        "is_adopted": adopted,
        "old_state": None,
        "new_state": None,
    }


def told(states: list[str]) -> list[dict[str, Any]]:
    """Return the events of a way through the states."""
    pairs = [(None, states[0]), *pairwise(states)]
    return [event("state", before, after) for before, after in pairs]


def event(kind: str, before: str | None, after: str | None, **values: Any) -> dict[str, Any]:
    plain = {"type": kind, "from_state": before, "to_state": after, "attempt": 1, "message": "-"}
    return {**plain, "data": "{}", **values}


def saved(home: Path, step: int, attempt: int) -> dict[str, Any]:
    """Commit a checkpoint on disk and return its row."""
    model = FastModel.fresh(WORK.seed)
    for _ in range(step):
        model.do_step()
    folder = checkpoint_folder(home, JOB, attempt, step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        kind="checkpoint",
        job_id=JOB,
        attempt=attempt,
        fence=attempt,
        step=step,
        base_model="fast",
        base_model_sha256="0",
        dataset_sha256="0",
        versions={},
        files=(),
    )
    committed = commit(folder, model.contents(), manifest)
    row = {"step": step, "attempt": attempt, "manifest_sha256": committed.manifest_sha256}
    return {**row, "status": "committed"}


@pytest.fixture
def good(tmp_path: Path) -> JobEvidence:
    """A job that crashed once after its first checkpoint, and succeeded."""
    commits = [
        event("checkpoint", None, None, attempt=attempt, data=json.dumps({"step": step}))
        for attempt, step in ((1, 2), (2, 4))
    ]
    return JobEvidence(
        accepted=Accepted(JOB, WORK),
        job={"state": "succeeded", "state_reason": None, "replay_mismatches": 0},
        attempts=[
            {"attempt": 1, "fence": 1, "start_step": 0},
            {"attempt": 2, "fence": 2, "start_step": 2},
        ],
        job_events=[*told(MOVES), *commits],
        checkpoints=[saved(tmp_path, 2, 1), saved(tmp_path, 4, 2)],
        journal=[*moved(MOVES), written(1, 1), written(1, 2, adopted=1), written(2, 2)],
        metrics=[Metric(n, loss) for n, loss in enumerate(WORK.golden.losses, 1)],
        adapter_sha256=WORK.golden.adapter_sha256,
        home=tmp_path,
    )


def with_job(job: JobEvidence, **values: Any) -> JobEvidence:
    assert job.job is not None
    return replace(job, job={**job.job, **values})


def asked(job: JobEvidence, *verbs: str) -> JobEvidence:
    return replace(job, accepted=Accepted(JOB, WORK, list(verbs)))


def through(job: JobEvidence, *states: str) -> JobEvidence:
    """Let the job go another way, and tell it."""
    way = list(states)
    kept = [each for each in job.job_events if each["type"] != "state"]
    changed = replace(job, job_events=[*told(way), *kept], journal=moved(way))
    return with_job(changed, state=way[-1])


def damaged(job: JobEvidence, step: int, attempt: int) -> JobEvidence:
    file = checkpoint_folder(job.home, JOB, attempt, step) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    return job


def all_corrupt(job: JobEvidence) -> JobEvidence:
    return replace(job, checkpoints=[{**row, "status": "corrupt"} for row in job.checkpoints])


def started_at(job: JobEvidence, step: int) -> JobEvidence:
    first, second = job.attempts
    return replace(job, attempts=[first, {**second, "start_step": step}])


def fences(job: JobEvidence, *numbers: int) -> JobEvidence:
    pairs = zip(job.attempts, numbers, strict=True)
    return replace(job, attempts=[{**row, "fence": number} for row, number in pairs])


UNASKED = ("queued", "starting", "running", "failed", "queued", "starting", "running", "finalizing")
# What is wrong -> the invariant that says so, and how the record is doctored.
FAULTS: dict[str, tuple[str, Doctor]] = {
    "no row": ("I1", lambda job: replace(job, job=None)),
    "stuck": ("I1", lambda job: through(job, *MOVES[:-1])),
    "failed though nothing was wrong": (
        "I1",
        lambda job: through(job, "queued", "starting", "running", "failed"),
    ),
    "paused though nobody asked": ("I1", lambda job: through(job, "queued", "paused")),
    "row of an old fence": ("I2", lambda job: replace(job, journal=[*job.journal, written(1, 2)])),
    "fence used twice": ("I2", lambda job: fences(job, 2, 2)),
    "fence went down": (
        "I2",
        lambda job: replace(
            job,
            journal=[{**row, "current_fence": 0} if row["fence"] else row for row in moved(MOVES)],
        ),
    ),
    "move that is not in the table": (
        "I3",
        lambda job: through(job, "queued", "running", "finalizing", "succeeded"),
    ),
    "move that nobody told": (
        "I3",
        lambda job: replace(
            job, job_events=[each for each in job.job_events if each["to_state"] != "finalizing"]
        ),
    ),
    "move told twice": (
        "I3",
        lambda job: replace(
            job, job_events=[*job.job_events, event("state", "finalizing", "succeeded")]
        ),
    ),
    "reopened by itself": ("I4", lambda job: through(job, *UNASKED, "succeeded")),
    "damaged and committed": ("I5", lambda job: damaged(job, 4, 2)),
    "started too early": ("I5", lambda job: started_at(job, 0)),
    "started where nothing was saved": ("I5", lambda job: started_at(job, 3)),
    "metric missing": ("I6", lambda job: replace(job, metrics=job.metrics[1:])),
    "metric doubled": ("I6", lambda job: replace(job, metrics=[*job.metrics, job.metrics[0]])),
    "metric too many": ("I6", lambda job: replace(job, metrics=[*job.metrics, Metric(5, 1.0)])),
    "other loss": (
        "I6",
        lambda job: replace(job, metrics=[*job.metrics[:-1], Metric(4, job.metrics[0].loss)]),
    ),
    "replay differs": ("I6", lambda job: with_job(job, replay_mismatches=1)),
    "no checkpoint left": ("I7", lambda job: replace(job, checkpoints=[])),
    "only corrupt ones left": ("I7", all_corrupt),
    "other adapter": ("I8", lambda job: replace(job, adapter_sha256="0" * 64)),
    "no adapter": ("I8", lambda job: replace(job, adapter_sha256=None)),
    "cancel without effect": (
        "I10",
        lambda job: asked(through(job, "queued", "starting", "running", "failed"), "cancel"),
    ),
}


def test_a_record_without_fault_passes(good: JobEvidence):
    assert oracle.violations(Evidence([good])) == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(good: JobEvidence, fault: str):
    invariant, doctor = FAULTS[fault]

    found = oracle.violations(Evidence([doctor(good)]))

    assert invariant in found
    assert set(found) - {invariant} <= {"I1"}, found


def test_two_trainers_and_one_that_is_left_over_are_named(good: JobEvidence):
    evidence = Evidence([good], samples=["two trainers"], leftovers=["one is left"])

    assert oracle.violations(evidence) == {"I9": ["two trainers", "one is left"]}


def test_what_nobody_accepted_and_uploads_that_are_not_there_are_named(good: JobEvidence):
    evidence = Evidence([good], unaccepted=["job-2"], broken_uploads=["ds-1"])

    found = oracle.violations(evidence)

    assert found.keys() == {"I1", "I2"}
    assert ("ds-1" in found["I1"][0], "job-2" in found["I2"][0]) == (True, True)


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        ([(1, 1), (1, 2), (2, 1)], None),
        ([(1, 1), (2, 1)], "missing"),
        ([(1, 1), (1, 2)], "missing"),
        ([(1, 1), (1, 2), (1, 2), (2, 1)], "doubled"),
        ([(1, 2), (1, 1), (2, 1)], "out of order"),
        ([(1, 1), (1, 2), (2, 1), (2, 2)], "of no row"),
    ],
)
def test_what_a_client_of_a_stream_must_not_see_is_named(
    seen: list[tuple[int, int]], named: str | None
):
    found = streams.faults([(1, 1), (1, 2), (2, 1)], seen)

    assert [line.partition(":")[0] for line in found] == ([] if named is None else [named])


def test_checks_beside_the_oracle_see_what_they_are_for(good: JobEvidence):
    twice = through(good, *MOVES, "queued", "starting", "running", "failed")

    assert oracle.several_starts(good)
    assert not oracle.several_starts(replace(good, attempts=good.attempts[:1]))
    assert oracle.several_ends(twice)
    assert not oracle.several_ends(good)
    assert oracle.crashes(good)
    assert not oracle.crashes(through(good, *MOVES[:3]))


def test_the_journal_records_writes_under_old_fences(sqlite_url: str):
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        rules = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in rules.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
    install_journal(sqlite_url)

    with closing(sqlite3.connect(path)) as connection, connection:
        _insert(connection, "jobs", id=JOB, state="running", desired="run", fence=2, attempt=2)
        for fence in (1, 2):
            _insert(connection, "attempts", job_id=JOB, attempt=fence, fence=fence)
            _insert(connection, "trainer_events", job_id=JOB, fence=fence, seq=1, kind="step")
        connection.execute("UPDATE jobs SET state = 'queued'")
        columns = "what, fence, current_fence, is_adopted, old_state, new_state"
        rows = connection.execute(f"SELECT {columns} FROM chaos_journal ORDER BY id").fetchall()

    assert rows == [
        ("trainer_events", 1, 2, 0, None, None),
        ("trainer_events", 2, 2, 0, None, None),
        ("state", 2, 2, None, "running", "queued"),
    ]


def _insert(connection: sqlite3.Connection, table: str, **values: Any) -> None:
    """Insert a row with something in every column that must not be null."""
    for _, name, kind, required, default, _ in connection.execute(f"PRAGMA table_info({table})"):
        if required and default is None:
            blank = "2026-01-01 00:00:00" if "DATE" in kind else "x" if "CHAR" in kind else 0
            values.setdefault(name, blank)
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))
