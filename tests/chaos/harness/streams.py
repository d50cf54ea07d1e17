"""Clients that follow jobs while the API is killed: each sees every event once and in order."""

import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import httpx2
from sqlalchemy import text

from tests.chaos.harness import databases, nemeses
from tests.chaos.harness.load import Accepted, Work
from tests.chaos.harness.run import Run, Scenario
from tests.chaos.harness.stack import API

_NUM_CLIENTS = 3
_PATIENCE_SECONDS = 60.0
_AGAIN_SECONDS = 0.05
_ID = re.compile(r"(\d+)-(\d+)")
_ROWS = "SELECT fence, seq FROM trainer_events WHERE job_id = :id ORDER BY fence, seq"
Cursor = tuple[int, int]


class Client:
    """Follows one job as a browser does: whenever it is cut off it comes back with its last id."""

    def __init__(self, url: str, job_id: str) -> None:
        self.job_id = job_id
        self.ids: list[Cursor] = []
        self.num_connections = 0
        self.is_complete = False
        self.after_complete = 0
        self._url = url
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(timeout=30)

    def _follow(self) -> None:
        while not (self.is_complete or self._is_over.is_set()):
            with suppress(httpx2.TransportError):
                self._connect()
            self._is_over.wait(_AGAIN_SECONDS)

    def _connect(self) -> None:
        headers = {"last-event-id": "{}-{}".format(*self.ids[-1])} if self.ids else {}
        path = f"/jobs/{self.job_id}/stream"
        with (
            httpx2.Client(base_url=self._url, headers=headers, timeout=20) as http,
            http.stream("GET", path) as answer,
        ):
            if answer.status_code != 200:
                return
            self.num_connections += 1
            event: dict[str, str] = {}
            for line in answer.iter_lines():
                # Only a blank line ends an event; what a cut leaves open never was one.
                if not line:
                    self._take(event)
                    event = {}
                    continue
                key, _, value = line.partition(": ")
                event[key] = value

    def _take(self, event: dict[str, str]) -> None:
        self.after_complete += self.is_complete
        self.is_complete = self.is_complete or event.get("event") == "complete"
        if found := _ID.fullmatch(event.get("id", "")):
            self.ids.append((int(found[1]), int(found[2])))


def streams(*, kills: int) -> Scenario:
    """Return the scenario that kills the API while clients are in the middle of streams."""

    def scenario(run: Run) -> None:
        clients: list[Client] = []
        try:
            while run.num_counted < kills:
                clients += _followed(run)
                _wait_for_news(run, clients)
                strike = nemeses.kill_api(run.stack, run.load, run.rng)
                if strike is not None:
                    run.strikes.append(strike)
                run.stack.revive()
                run.look()
            _wait_for_all(run, clients)
        finally:
            for client in clients:
                client.close()
        run.extra["streams"] += [line for client in clients for line in _faults(run, client)]
        run.figures |= {
            "clients": len(clients),
            "connections": sum(client.num_connections for client in clients),
            "events": sum(len(client.ids) for client in clients),
        }

    return scenario


def _followed(run: Run) -> list[Client]:
    """Submit a job unless two are under way, and let clients follow it."""
    if len(run.load.unfinished()) >= 2:
        return []
    seed, num_steps = run.rng.randrange(2**31), run.rng.choice((120, 300))
    job: Accepted = run.load.submit(Work(seed=seed, num_steps=num_steps, step_ms=15, save_ms=10))
    url = f"http://127.0.0.1:{run.stack.port}"
    return [Client(url, job.job_id) for _ in range(_NUM_CLIENTS)]


def _wait_for_news(run: Run, clients: list[Client]) -> None:
    """Wait until a job that goes on has told each of its clients something since they came."""
    run.stack.wait_until(run.stack.api_answers, what="the API to answer", seconds=_PATIENCE_SECONDS)
    before = {id(client): len(client.ids) for client in clients}
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        going = [client for client in clients if not client.is_complete]
        news = [client for client in going if len(client.ids) > before[id(client)] + 3]
        if not going or len(news) >= _NUM_CLIENTS:
            break
        time.sleep(0.01)
    time.sleep(run.rng.uniform(0, 0.1))


def _wait_for_all(run: Run, clients: list[Client]) -> None:
    run.stack.wait_until(
        lambda: run.stack.is_running(API) and all(client.is_complete for client in clients),
        what="every stream to say complete",
        seconds=_PATIENCE_SECONDS,
    )


def _faults(run: Run, client: Client) -> list[str]:
    with databases.reading(run.stack.database.url) as connection:
        found = connection.execute(text(_ROWS), {"id": client.job_id})
        rows = [(row.fence, row.seq) for row in found]
    lines = faults(rows, client.ids)
    if not client.is_complete:
        lines.append("its stream never said complete")
    if client.after_complete:
        lines.append(f"{client.after_complete} events came after complete")
    return [f"a client of {client.job_id}: {line}" for line in lines]


def faults(rows: Sequence[Cursor], seen: Sequence[Cursor]) -> list[str]:
    """Say in what the ids that a client saw are not those of the rows, each once and in order."""
    found: list[str] = []
    if len(seen) != len(set(seen)):
        found.append(f"doubled: {sorted({each for each in seen if seen.count(each) > 1})}")
    if seen != sorted(seen):
        found.append("out of order")
    if missing := sorted(set(rows) - set(seen)):
        found.append(f"missing: {missing[:5]} of {len(missing)}")
    if extra := sorted(set(seen) - set(rows)):
        found.append(f"of no row: {extra[:5]}")
    return found
