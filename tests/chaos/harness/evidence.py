"""What a run left behind, read once: rows, journal, folders, and the metrics that the API shows."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import Connection, text

from app.domain.runs import FINAL_FOLDER, attempt_folder
from tests.chaos.harness import databases
from tests.chaos.harness.load import Accepted
from tests.chaos.harness.stack import ChaosStack

_ADAPTER = "adapter_model.safetensors"
Row = Mapping[str, Any]

_QUERIES = {
    "jobs": "SELECT * FROM jobs ORDER BY id",
    "attempts": "SELECT * FROM attempts ORDER BY job_id, attempt",
    "job_events": "SELECT * FROM job_events ORDER BY job_id, id",
    "checkpoints": "SELECT * FROM checkpoints ORDER BY job_id, step",
    "journal": "SELECT * FROM chaos_journal ORDER BY id",
}
_DATASETS = "SELECT id, sha256 FROM datasets ORDER BY id"


@dataclass(frozen=True)
class Metric:
    """One effective metric row."""

    step: int
    loss: float | None


@dataclass(frozen=True)
class JobEvidence:
    """All that there is about one job."""

    accepted: Accepted
    job: Row | None
    attempts: Sequence[Row]
    job_events: Sequence[Row]
    checkpoints: Sequence[Row]
    journal: Sequence[Row]
    metrics: Sequence[Metric]
    """As `GET /jobs/{id}/metrics` shows them."""
    adapter_sha256: str | None
    """Of the final adapter that the job's row names."""
    home: Path

    @property
    def job_id(self) -> str:
        return self.accepted.job_id

    @property
    def state(self) -> str:
        return "missing" if self.job is None else self.job["state"]


@dataclass(frozen=True)
class Evidence:
    """All that there is about a run."""

    jobs: Sequence[JobEvidence]
    samples: Sequence[str] = ()
    """What was seen while the run went on and must not be: two trainers at one job."""
    leftovers: Sequence[str] = ()
    """Processes that outlived the work."""
    unaccepted: Sequence[str] = ()
    """Ids of jobs and data sets that are there and that no answer with a 2xx named."""
    broken_uploads: Sequence[str] = ()
    """Ids of accepted data sets without a row, or without the file that the row describes."""
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict[str, Sequence[Row]])


def collect(
    stack: ChaosStack,
    accepted: Sequence[Accepted],
    *,
    uploads: Sequence[str] = (),
    samples: Sequence[str] = (),
    leftovers: Sequence[str] = (),
) -> Evidence:
    """Read everything; the API has to be there."""
    with databases.reading(stack.database.url) as connection:
        tables = {name: _rows(connection, query) for name, query in _QUERIES.items()}
        hashes = {row["id"]: row["sha256"] for row in _rows(connection, _DATASETS)}
    by_job = {name: _by_job(rows) for name, rows in tables.items() if name != "jobs"}
    rows = {row["id"]: row for row in tables["jobs"]}
    jobs = [
        JobEvidence(
            accepted=each,
            job=rows.get(each.job_id),
            metrics=_metrics(stack.http, each.job_id),
            adapter_sha256=adapter_sha256(stack.home, rows.get(each.job_id)),
            home=stack.home,
            **{name: found[each.job_id] for name, found in by_job.items()},
        )
        for each in accepted
    ]
    there = {*rows, *hashes}
    return Evidence(
        jobs,
        samples,
        leftovers,
        unaccepted=sorted(there - {each.job_id for each in accepted} - set(uploads)),
        broken_uploads=[each for each in uploads if not _is_stored(stack, each, hashes.get(each))],
        tables=tables,
    )


def adapter_sha256(home: Path, job: Row | None) -> str | None:
    """Hash the final adapter of a job; None when it has none."""
    if job is None or job["final_attempt"] is None:
        return None
    file = attempt_folder(home, job["id"], job["final_attempt"]) / FINAL_FOLDER / _ADAPTER
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "no file"


def _is_stored(stack: ChaosStack, dataset_id: str, sha256: str | None) -> bool:
    files = (stack.home / "datasets" / dataset_id).glob("*")
    return sha256 in {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _rows(connection: Connection, query: str) -> list[Row]:
    return [dict(row) for row in connection.execute(text(query)).mappings()]


def _by_job(rows: Sequence[Row]) -> defaultdict[str, list[Row]]:
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["job_id"]].append(row)
    return found


def _metrics(http: httpx2.Client, job_id: str) -> list[Metric]:
    answer = http.get(f"/jobs/{job_id}/metrics", params={"limit": "10000"})
    answer.raise_for_status()
    return [Metric(each["step"], each["loss"]) for each in answer.json()["data"]]
