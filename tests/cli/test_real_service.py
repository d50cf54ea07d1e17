"""The terminal against a real service: doctor, a watch that outlives the API, figures of jobs."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.stack import SLOW_STEPS, Stack, link_model

pytestmark = pytest.mark.services
ROWS = [{"prompt": f"What is {n} + {n}?", "completion": f" {n + n}"} for n in range(40)]


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, tiny_llama: Path
) -> Iterator[Stack]:
    """One service for all tests here; steps take time to act between them."""
    home = tmp_path_factory.mktemp("t")
    shutil.copyfile(sqlite_template, home / "lorad.db")
    stack = Stack(home, f"sqlite:///{home / 'lorad.db'}", **SLOW_STEPS)
    link_model(home, tiny_llama)
    for name in ("valkey", "api", "worker"):
        stack.start(name)
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def first_job(service: Stack) -> str:
    return service.submit(wanted(service, max_steps=30))


def wanted(service: Stack, **training: object) -> dict:
    return {
        "base_model": "tiny-llama",
        "dataset": {"id": service.upload(ROWS), "val_size": 8, "max_length": 64},
        "training": {"per_device_train_batch_size": 1, "eval_steps": 10, **training},
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "app.cli.main", *arguments]


def run(service: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(service),
        capture_output=True,
        text=True,
        check=False,
    )


def environment(service: Stack) -> dict[str, str]:
    return {**service.environment, "LORAD_API_URL": f"http://127.0.0.1:{service.port}"}


def test_a_watch_outlives_a_restart_of_the_api_and_ends_with_the_job(service, first_job):
    with subprocess.Popen(
        command("watch", first_job, "--every", "0.01"),
        env=environment(service),
        stderr=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert watcher.stderr is not None
        for line in watcher.stderr:
            if line.startswith("step "):
                break
        service.stop("api")
        service.start("api")
        told = watcher.stderr.read().splitlines()

    assert watcher.returncode == 0
    lost = next(i for i, line in enumerate(told) if "connecting again" in line)
    back = told.index("connected again")
    assert lost < back
    assert any(line.startswith("step 30/30") for line in told[back:])
    assert any(f"{first_job} has succeeded" in line for line in told[back:])
    assert not any("Traceback" in line for line in told)


def test_what_was_measured_can_be_drawn_compared_and_taken_along(service, first_job):
    service.wait_for_state(first_job, "succeeded")
    other = service.submit({**wanted(service, max_steps=2, eval_steps=None), "seed": 7})
    service.wait_for_state(other, "succeeded")

    drawn = run(service, "metrics", first_job, "--plot").stdout
    rows = list(csv.DictReader(io.StringIO(run(service, "metrics", first_job, "--csv").stdout)))
    differing = json.loads(run(service, "diff", first_job, other, "--json").stdout)

    assert drawn.count("o") > 3
    assert "evaluation" in drawn.splitlines()[-1]
    assert [float(row["loss"]) for row in rows] == [m["loss"] for m in service.metrics(first_job)]
    assert differing["keys"]["seed"] == [42, 7]
    assert differing["keys"]["training.max_steps"] == [30, 2]
    assert differing["figures"]["step"] == [30, 2]


def test_doctor_is_content_with_it_and_gives_its_verdict_as_json(service):
    done = run(service, "doctor", "--json")

    said = json.loads(done.stdout)
    found = {each["name"]: each["status"] for each in said["checks"]}
    assert (done.returncode, said["is_well"]) == (0, True), done.stdout
    assert {"worker", "redis", "clock (redis)", "database", "port", "models"} <= set(found)
    assert {name for name, status in found.items() if status != "ok"} <= {"cuda", "disk"}
