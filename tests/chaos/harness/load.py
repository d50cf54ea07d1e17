"""The jobs of a chaos run: submitted under an idempotency key, remembered once accepted."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import httpx2
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.domain.jobs import TERMINAL_STATES
from tests.chaos.harness import databases, fast_model, fast_trainer
from tests.chaos.harness.fast_model import Golden
from tests.chaos.harness.stack import ChaosStack, Stuck
from tests.services.place import write_model

MODEL = "fast"
_RETRY_SECONDS = 60.0
_ENDED = {*(str(state) for state in TERMINAL_STATES), "paused"}


@dataclass(frozen=True)
class Work:
    """What one job is to do, on the fast trainer."""

    seed: int
    num_steps: int = 30
    save_steps: int = 5
    step_ms: float = 12
    save_ms: float = 40
    save_total_limit: int | None = 3
    failpoints: str = ""
    failing_attempts: str = "1"

    @property
    def golden(self) -> Golden:
        return fast_model.golden(self.seed, self.num_steps)

    def spec(self, dataset: str) -> dict[str, Any]:
        metadata = {
            fast_trainer.STEP_MS: f"{self.step_ms:g}",
            fast_trainer.SAVE_MS: f"{self.save_ms:g}",
        }
        if self.failpoints:
            metadata |= {
                fast_trainer.FAILPOINTS: self.failpoints,
                fast_trainer.FAILING_ATTEMPTS: self.failing_attempts,
            }
        return {
            "base_model": MODEL,
            "seed": self.seed,
            "dataset": {"id": dataset},
            "metadata": metadata,
            "training": {
                "max_steps": self.num_steps,
                "save_steps": self.save_steps,
                "save_total_limit": self.save_total_limit,
            },
        }


class AnyWork(Protocol):
    """What submitting and judging a job takes."""

    @property
    def num_steps(self) -> int: ...

    @property
    def golden(self) -> Golden: ...

    def spec(self, dataset: str) -> dict[str, Any]: ...


@dataclass
class Accepted:
    """A job that got its 2xx, and what was asked of it since."""

    job_id: str
    work: AnyWork
    asked: list[str] = field(default_factory=list[str])
    """Verbs that got a 2xx, in their order: pause, cancel, resume."""


class Load:
    """Submits jobs and knows what became of them."""

    def __init__(self, stack: ChaosStack) -> None:
        self._stack = stack
        self._num_sent = 0
        self.accepted: dict[str, Accepted] = {}
        self.uploads: list[str] = []
        """Ids of the data sets whose upload got its 2xx."""
        self.before_retry: Callable[[], None] = lambda: None
        """Called after each request that failed, before what is dead is started again."""
        self._dataset = ""
        self.answers: Counter[int] = Counter()

    def place_model(self) -> None:
        """Put a model in place that passes the look at its files; nobody loads it."""
        write_model(self._stack.home, MODEL)

    def upload(self, rows: bytes = b'{"text": "a row"}\n') -> None:
        """Upload the data set of all jobs from now on, again with the same key until accepted."""
        files = {"file": ("rows.jsonl", rows)}
        key = {"Idempotency-Key": f"chaos-upload-{len(self.uploads)}"}
        answer = self._retried("/datasets", files=files, headers=key)
        if answer.status_code != 201:
            raise Stuck(f"the data set was refused: {answer.text}")
        self._dataset = answer.json()["id"]
        self.uploads.append(self._dataset)

    def submit(self, work: AnyWork) -> Accepted:
        """Submit a job, again with the same key until it is accepted."""
        self._num_sent += 1
        key = {"Idempotency-Key": f"chaos-{self._num_sent}"}
        answer = self._retried("/jobs", json=work.spec(self._dataset), headers=key)
        if answer.status_code != 201:
            raise Stuck(f"a job was refused: {answer.status_code} {answer.text}")
        job = Accepted(answer.json()["id"], work)
        self.accepted[job.job_id] = job
        return job

    def ask(self, job: Accepted, verb: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        """Pause, cancel or resume a job; what got a 2xx is remembered."""
        answer = self._retried(f"/jobs/{job.job_id}/{verb}", json=body)
        if answer.status_code < 300:
            job.asked.append(verb)
        return answer

    def unfinished(self) -> list[Accepted]:
        """Return the jobs that have not ended; all of them while the database is away."""
        ended = self.ended_ids()
        return [job for job in self.accepted.values() if job.job_id not in ended]

    def ended_ids(self) -> set[str]:
        return {job_id for job_id, state in self.states().items() if state in _ENDED}

    def states(self) -> dict[str, str]:
        """Return the state of every job; none while the database is away."""
        return self._column("state")

    def attempts(self) -> dict[str, int]:
        """Return how often each job was started; none while the database is away."""
        return self._column("attempt")

    def state(self, job: Accepted) -> str | None:
        return self.states().get(job.job_id)

    def wait_for_all(self, *, seconds: float) -> list[str]:
        """Wait until every job has ended; returns the ids of those that did not."""
        with suppress(Stuck):
            self._stack.wait_until(
                lambda: not self.unfinished(), what="every job to end", seconds=seconds, poll=0.2
            )
        return [job.job_id for job in self.unfinished()]

    def wait_for(self, job: Accepted, states: Iterable[str], *, seconds: float = 60) -> str:
        """Wait until a job is in one of `states`."""
        wanted: set[str] = set(states)
        seen: list[str | None] = []

        def there() -> bool:
            seen[:] = [self.state(job)]
            return seen[0] in wanted

        self._stack.wait_until(
            there, what=f"{job.job_id} to be {sorted(wanted)}", seconds=seconds, poll=0.02
        )
        return str(seen[0])

    def _column(self, name: Literal["state", "attempt"]) -> dict[str, Any]:
        with suppress(SQLAlchemyError), databases.reading(self._stack.database.url) as connection:
            return {
                row[0]: row[1] for row in connection.execute(text(f"SELECT id, {name} FROM jobs"))
            }
        return {}

    def _retried(self, path: str, **content: Any) -> httpx2.Response:
        """Send a request until it is answered by other than an outage."""
        deadline = time.monotonic() + _RETRY_SECONDS
        while True:
            with suppress(httpx2.TransportError):
                answer = self._stack.http.post(path, **content)
                self.answers[answer.status_code] += 1
                if answer.status_code < 500:
                    return answer
            if time.monotonic() > deadline:
                raise Stuck(f"no answer to POST {path} within {_RETRY_SECONDS:.0f} s")
            self.before_retry()
            self._stack.revive()
            time.sleep(0.05)
