"""How long charts of long runs take: the answers that a page of a job draws, over its steps.

Jobs of a thousand to a million steps are put into a fresh database, with their rollups made as they
are for a job that is restored. Each answer is then asked for many times, through the whole API.

    python bench/charts.py
    python bench/charts.py --database-url postgresql+psycopg://...
"""

import argparse
import json
import logging
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MOST_SECONDS = 0.3
MOST_BYTES = 200_000
ROWS_AT_ONCE = 1000
ANSWERS = {
    "chart": "metrics?max_points=2000",
    "loss": "metrics?max_points=2000&metrics=loss",
    "zoom": "metrics?max_points=2000&from_step={middle}",
    "markers": "markers",
}


def main() -> None:
    given = parse_arguments()
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        result = measure(given, Path(name))
    for row in result["jobs"]:
        for name, answer in row["answers"].items():
            print(f"{row['steps']:>9} {name:8}{answer['ms']:9.1f} ms{answer['bytes']:9} bytes")
    print(f"slope of the chart's time, log over log: {result['slope']:.3f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    longest = result["jobs"][-1]["answers"].values()
    if any(each["ms"] > MOST_SECONDS * 1000 or each["bytes"] > MOST_BYTES for each in longest):
        raise SystemExit("an answer is slower or larger than it may be")


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill a database with jobs and ask for their charts."""
    from fastapi.testclient import TestClient

    from app.db import migrate
    from app.db.engine import Database
    from app.main import create_app
    from app.services.jobs import Outside
    from app.settings import Settings
    from tests.services.driver import Driver, FakeDoorbell, FakeStream
    from tests.services.place import write_model

    url = given.database_url or f"sqlite:///{folder / 'lorad.db'}"
    settings = Settings(home=folder, database_url=url)
    write_model(folder)
    migrate.upgrade(settings.sqlalchemy_url)
    database = Database(settings.sqlalchemy_url)
    outside = Outside(settings, FakeDoorbell(), FakeStream())
    driver = Driver(database, outside)
    rows: list[dict[str, Any]] = []
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
        for steps in given.steps:
            rows.append(measure_one(driver, client, steps, given.calls))
    database.close()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "database": url.partition(":")[0].partition("+")[0],
        "cpus": os.cpu_count(),
        "jobs": rows,
        "slope": slope([(row["steps"], row["answers"]["chart"]["ms"]) for row in rows]),
    }


def measure_one(driver: Any, client: Any, steps: int, calls: int) -> dict[str, Any]:
    """Make a job of so many steps and time each answer about it."""
    from app.domain.jobs import JobState
    from app.services import rollups

    job_id = driver.submit(training={"max_steps": steps})
    started = time.perf_counter()
    run = driver.claimed()
    assert run.job_id == job_id
    for rows in pieces(driver, run, steps):
        insert(driver, rows)
    driver.fail(run, JobState.STARTING)  # the next job needs the worker
    stored = time.perf_counter()
    with driver.db.write() as session:
        rollups.rebuild(session, job_id)
    rebuilt = time.perf_counter()
    answers = {
        name: ask(client, f"/jobs/{job_id}/{path.format(middle=steps // 2)}", calls)
        for name, path in ANSWERS.items()
    }
    return {
        "steps": steps,
        "store_seconds": stored - started,
        "rollup_seconds": rebuilt - stored,
        "answers": answers,
    }


def pieces(driver: Any, run: Any, steps: int) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of step events; losses fall, with noise, a spike and a step without one."""
    noise = random.Random(0)
    for first in range(1, steps + 1, ROWS_AT_ONCE):
        rows: list[dict[str, Any]] = []
        for step in range(first, min(first + ROWS_AT_ONCE, steps + 1)):
            loss = 4.0 / (1 + step / 1000) + 1 + noise.gauss(0, 0.05)
            given = None if step == steps // 3 else 50.0 if step == steps // 2 else loss
            event = driver.step(run, step, loss=given, grad_norm=noise.random() + 0.5)
            key = {"job_id": run.job_id, "fence": run.fence, "seq": event.seq, "superseded": False}
            body = event.model_dump_json()
            rows.append({**key, "kind": "step", "step": step, "body": body})
        yield rows


def insert(driver: Any, rows: Sequence[dict[str, Any]]) -> None:
    from sqlalchemy import insert as insert_into

    from app.db.tables import TrainerEventRow

    with driver.db.write() as session:
        session.execute(insert_into(TrainerEventRow).values(list(rows)))


def ask(client: Any, path: str, calls: int) -> dict[str, float]:
    """Return the median time and the size of an answer, not compressed."""
    seconds: list[float] = []
    answer = client.get(path)
    for _ in range(calls):
        started = time.perf_counter()
        answer = client.get(path)
        seconds.append(time.perf_counter() - started)
    if answer.status_code != 200:
        raise SystemExit(f"GET {path}: {answer.status_code} {answer.text}")
    return {"ms": round(statistics.median(seconds) * 1000, 1), "bytes": len(answer.content)}


def slope(places: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through the logarithms, by least squares."""
    logs = [(math.log(x), math.log(y)) for x, y in places]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope if len(logs) > 1 else 0.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sizes = [1_000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--steps", type=int, nargs="+", default=sizes, help="steps of each job")
    parser.add_argument("--calls", type=int, default=20, help="requests per answer")
    parser.add_argument("--database-url", help="an empty database; a fresh SQLite file without it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "charts.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
