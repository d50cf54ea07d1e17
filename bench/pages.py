"""How long pages and charts of a full house take: many jobs, and jobs of up to a million steps.

Jobs of a thousand to a million steps and ten thousand short ones are put into a fresh database,
with their rollups made as they are for a job that is restored. Each answer is then asked for many
times over HTTP, and Chromium, if there is one, tells when it first painted the pages.

    python bench/pages.py
    python bench/pages.py --database-url postgresql+psycopg://...
"""

import argparse
import json
import logging
import math
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MOST_SECONDS = 0.3
MOST_BYTES = 200_000
ROWS_AT_ONCE = 1000
ANSWERS = {
    "page": "/ui/jobs/{job_id}",
    "curves": "/ui/jobs/{job_id}/curves.json",
    "chart": "/jobs/{job_id}/metrics?max_points=2000",
    "loss": "/jobs/{job_id}/metrics?max_points=2000&metrics=loss",
    "zoom": "/jobs/{job_id}/metrics?max_points=2000&from_step={middle}",
    "markers": "/jobs/{job_id}/markers",
}
JOBS = {
    "jobs page": "/ui/jobs",
    "found by name": "/ui/jobs?q=job+77",
    "by loss": "/ui/jobs?sort=loss",
    "jobs API": "/jobs?limit=50",
}


def main() -> None:
    given = parse_arguments()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        result = measure(given, Path(name))
    for row in (result["house"], *result["jobs"]):
        for name, answer in row["answers"].items():
            print(f"{row['what']:>16} {name:14}{answer['ms']:9.1f} ms{answer['bytes']:9} bytes")
        for name, paint in row["first_paint_ms"].items():
            print(f"{row['what']:>16} {name:14}{paint:9.1f} ms to the first paint")
    print(f"slope of the chart's time, log over log: {result['slope']:.3f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    wanted = [*result["house"]["answers"].values(), *result["jobs"][-1]["answers"].values()]
    if any(each["ms"] > MOST_SECONDS * 1000 or each["bytes"] > MOST_BYTES for each in wanted):
        raise SystemExit("an answer is slower or larger than it may be")


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill a database with jobs, then ask for their pages and charts."""
    from app.db import migrate
    from app.db.engine import Database
    from app.services.jobs import Outside
    from app.settings import Settings
    from tests.services.driver import Driver, FakeDoorbell, FakeStream
    from tests.services.place import write_model

    url = given.database_url or f"sqlite:///{folder / 'lorad.db'}"
    # The broker is not needed to look at pages: nobody listens at this port.
    settings = Settings.model_validate(
        {"home": folder, "database_url": url, "redis_url": "redis://127.0.0.1:1/0"}
    )
    write_model(folder)
    migrate.upgrade(settings.sqlalchemy_url)
    database = Database(settings.sqlalchemy_url)
    driver = Driver(database, Outside(settings, FakeDoorbell(), FakeStream()))
    worker_id = driver.worker()
    rows = [fill(driver, worker_id, steps) for steps in given.steps]
    house = fill_house(driver, worker_id, given.jobs)
    database.close()
    with served(settings) as base_url:
        paint = painter(base_url)
        house |= ask_all(base_url, JOBS, given.calls)
        house["first_paint_ms"] = paint({"jobs page": "/ui/jobs"})
        for row in rows:
            known = {"job_id": row.pop("id"), "middle": row["steps"] // 2}
            paths = {name: path.format(**known) for name, path in ANSWERS.items()}
            row |= ask_all(base_url, paths, given.calls)
            row["first_paint_ms"] = paint({"page": paths["page"]})
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "database": url.partition(":")[0].partition("+")[0],
        "cpus": os.cpu_count(),
        "house": house,
        "jobs": rows,
        "slope": slope([(row["steps"], row["answers"]["chart"]["ms"]) for row in rows]),
    }


def fill(driver: Any, worker_id: str, steps: int) -> dict[str, Any]:
    """Make a job of so many steps that ended with an error."""
    from app.domain.jobs import JobState
    from app.services import rollups

    job_id = driver.submit(name=f"{steps:,} steps", training={"max_steps": steps})
    started = time.perf_counter()
    run = driver.claimed(worker_id)
    for rows in pieces(driver, run, steps):
        insert(driver, rows)
    driver.sql("UPDATE jobs SET step = :n, total_steps = :n WHERE id = :id", n=steps, id=job_id)
    driver.fail(run, JobState.STARTING)  # the next job needs the worker
    stored = time.perf_counter()
    with driver.db.write() as session:
        rollups.rebuild(session, job_id)
    return {
        "what": f"{steps:,} steps",
        "id": job_id,
        "steps": steps,
        "store_seconds": round(stored - started, 1),
        "rollup_seconds": round(time.perf_counter() - stored, 1),
    }


def fill_house(driver: Any, worker_id: str, num_jobs: int) -> dict[str, Any]:
    """Make short jobs that succeeded, each with some steps."""
    from app.domain.jobs import JobState

    started = time.perf_counter()
    for number in range(num_jobs):
        driver.submit(name=f"job {number}", training={"max_steps": 40})
        run = driver.claimed(worker_id)
        insert(driver, next(pieces(driver, run, 40)))
        values = {"loss": 1 + number % 97 / 97, "id": run.job_id}
        driver.sql(
            "UPDATE jobs SET step = 40, total_steps = 40, loss = :loss WHERE id = :id", **values
        )
        driver.fail(run, JobState.STARTING)
    return {
        "what": f"{num_jobs:,} jobs",
        "jobs": num_jobs,
        "store_seconds": round(time.perf_counter() - started, 1),
    }


def pieces(driver: Any, run: Any, steps: int) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of step events; losses fall, with noise, a spike and a step without one."""
    noise = random.Random(0)
    like = driver.step(run, 1).model_dump(mode="json")
    for first in range(1, steps + 1, ROWS_AT_ONCE):
        rows: list[dict[str, Any]] = []
        for step in range(first, min(first + ROWS_AT_ONCE, steps + 1)):
            loss = 4.0 / (1 + step / 1000) + 1 + noise.gauss(0, 0.05)
            given = None if step == steps // 3 else 50.0 if step == steps // 2 else loss
            measured = {"step": step, "loss": given, "grad_norm": noise.random() + 0.5}
            event = {**like, "seq": step, "step": step, "metrics": {**like["metrics"], **measured}}
            key = {"job_id": run.job_id, "fence": run.fence, "seq": step, "superseded": False}
            rows.append({**key, "kind": "step", "step": step, "body": json.dumps(event)})
        yield rows


def insert(driver: Any, rows: Sequence[dict[str, Any]]) -> None:
    from sqlalchemy import insert as insert_into

    from app.db.tables import TrainerEventRow

    with driver.db.write() as session:
        session.execute(insert_into(TrainerEventRow), list(rows))


@contextmanager
def served(settings: Any) -> Generator[str]:
    """Serve the API from a thread of this process."""
    import uvicorn

    from app.main import create_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), host="127.0.0.1", port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def ask_all(base_url: str, paths: dict[str, str], calls: int) -> dict[str, Any]:
    """Return the median time and the size of each answer, not compressed."""
    import httpx2

    found: dict[str, dict[str, float]] = {}
    with httpx2.Client(base_url=base_url, timeout=60) as client:
        for name, path in paths.items():
            seconds: list[float] = []
            answer = client.get(path)
            for _ in range(calls):
                started = time.perf_counter()
                answer = client.get(path)
                seconds.append(time.perf_counter() - started)
            if answer.status_code != 200:
                raise SystemExit(f"GET {path}: {answer.status_code} {answer.text}")
            middle = round(statistics.median(seconds) * 1000, 1)
            found[name] = {"ms": middle, "bytes": len(answer.content)}
    return {"answers": found}


def painter(base_url: str) -> Any:
    """Return what measures the first paint of pages; of none where there is no browser."""
    binary = shutil.which("chromium")

    def paint(paths: dict[str, str]) -> dict[str, float]:
        if binary is None:
            return {}
        from playwright.sync_api import sync_playwright

        found: dict[str, float] = {}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
            for name, path in paths.items():
                found[name] = statistics.median(first_paint(browser, base_url + path, 5))
            browser.close()
        return found

    return paint


def first_paint(browser: Any, url: str, times: int) -> list[float]:
    """Return milliseconds from the start of the navigation, each in a fresh profile."""
    entry = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
    found: list[float] = []
    for _ in range(times):
        context = browser.new_context()
        page = context.new_page()
        page.goto(url, wait_until="load")
        while (painted := page.evaluate(entry)) is None:
            page.wait_for_timeout(20)
        found.append(painted)
        context.close()
    return found


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
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs beside them")
    parser.add_argument("--database-url", help="an empty database; a fresh SQLite file without it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "pages.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
