"""Exports through the whole service: asked for over HTTP, made by a worker, fetched by a user."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.rows import ROWS
from tests.fixtures.stack import Stack, link_model

pytestmark = pytest.mark.services

# The process of an export stops by itself when its files are written and not yet read back.
STOPS = {"LORAD_FAILPOINTS": "export.written=stop"}


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, models: dict[str, Path]
) -> Iterator[Stack]:
    """Valkey, API and worker, and a copy of a small model."""
    home = tmp_path_factory.mktemp("x")
    shutil.copyfile(sqlite_template, home / "lorad.db")
    stack = Stack(home, f"sqlite:///{home / 'lorad.db'}")
    link_model(home, models["llama"], "small")
    try:
        for name in ("valkey", "api", "worker"):
            stack.start(name)
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="module")
def job_id(service: Stack) -> str:
    """A job that has succeeded, with checkpoints at steps 2 and 4."""
    job_id = service.submit(
        {
            "base_model": "small",
            "name": "My job!",
            "dataset": {"id": service.upload(ROWS)},
            "lora": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
            "training": {"max_steps": 4, "save_steps": 2, "learning_rate": 2e-2},
        }
    )
    service.wait_for_state(job_id, "succeeded")
    return job_id


def asked(service: Stack, job_id: str, **body: Any) -> dict[str, Any]:
    answer = service.http.post(f"/jobs/{job_id}/exports", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def shown(service: Stack, export: dict[str, Any]) -> dict[str, Any]:
    return service.http.get(f"/jobs/{export['job_id']}/exports/{export['id']}").json()


def ended(service: Stack, export: dict[str, Any]) -> dict[str, Any]:
    """Wait until an export has ended."""
    states = ("succeeded", "failed", "cancelled")
    service.wait_until(
        lambda: shown(service, export)["state"] in states, what="the export to end", seconds=90
    )
    return shown(service, export)


def stopped(service: Stack) -> psutil.Process:
    """Wait for the process of an export that stopped itself."""
    found: list[psutil.Process] = []

    def there() -> bool:
        found[:] = [p for p in service.trainers() if p.status() == psutil.STATUS_STOPPED]
        return bool(found)

    service.wait_until(there, what="an export to be written", seconds=60)
    return found[0]


def folders(service: Stack, job_id: str) -> list[str]:
    parent = service.home / "jobs" / job_id / "exports"
    return sorted(path.name for path in parent.iterdir()) if parent.is_dir() else []


def test_every_format_is_made_proven_and_fetched(service: Stack, job_id: str, tmp_path: Path):
    wanted = [
        asked(service, job_id, format="adapter"),
        asked(service, job_id, format="merged", checkpoint=2),
        asked(service, job_id, format="gguf"),
    ]

    exports = [ended(service, each) for each in wanted]

    for export in exports:
        assert export["state"] == "succeeded", (export, service.log("worker"))
        assert (export["parity"]["problems"], export["progress"]) == ([], 1.0)
        path = f"/jobs/{job_id}/exports/{export['id']}/download"
        archive = zipfile.ZipFile(io.BytesIO(service.http.get(path).content))
        assert set(archive.namelist()) == {file["name"] for file in export["files"]}
        for file in export["files"]:
            content = service.http.get(path, params={"file": file["name"]}).content
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
            assert archive.read(file["name"]) == content
    assert [export["step"] for export in exports] == [4, 2, 4]
    assert [export["dtype"] for export in exports] == ["float32", "float32", "f16"]
    path = f"/jobs/{job_id}/exports/{exports[0]['id']}/download"
    no_file = service.http.get(path, params={"file": "../../lorad.db"})
    assert (no_file.status_code, no_file.json()["error"]["param"]) == (404, "file")


def test_the_command_line_exports_and_fetches(service: Stack, job_id: str, tmp_path: Path):
    environment = {**os.environ, "LORAD_API_URL": f"http://127.0.0.1:{service.port}"}
    out = tmp_path / "out"
    command = [sys.executable, "-m", "app.cli.main"]

    made = subprocess.run(
        [*command, "export", job_id, "--dtype", "float16", "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    listed = subprocess.run(
        [*command, "exports", job_id, "-o", "json"],
        env=environment,
        capture_output=True,
        check=True,
    )

    assert made.returncode == 0, made.stderr
    assert "same: 100.0% of" in made.stdout
    (newest, *_) = json.loads(listed.stdout)
    assert (newest["dtype"], newest["format"]) == ("float16", "merged")
    for file in newest["files"]:
        assert hashlib.sha256((out / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    assert "my-job" in (out / "VLLM.txt").read_text()


def test_a_retried_request_makes_one_export_and_lists_page(service: Stack, job_id: str):
    path, key = f"/jobs/{job_id}/exports", {"Idempotency-Key": "once"}
    body = {"format": "adapter", "checkpoint": 2}

    first, again = (service.http.post(path, json=body, headers=key) for _ in range(2))
    other = service.http.post(path, json={"format": "gguf"}, headers=key)
    ended(service, first.json())

    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    whole = service.http.get(path).json()["data"]
    pages = []
    after: dict[str, str] = {}
    for _ in whole:
        page = service.http.get(path, params={"limit": 1, **after}).json()
        pages += page["data"]
        after = {"after": page["data"][-1]["id"]}
        assert page["has_more"] == (len(pages) < len(whole))
    assert pages == whole


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "format"),
        ({"format": "onnx"}, 422, "format"),
        ({"format": "merged", "quantize": True}, 422, "quantize"),
        ({"format": "merged", "dtype": "int3"}, 422, "dtype"),
        ({"format": "merged", "base": "dequantized"}, 422, "base"),
        ({"format": "merged", "checkpoint": 3}, 404, "checkpoint"),
        ({"format": "merged", "checkpoint": "best"}, 404, "checkpoint"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(
    service: Stack, job_id: str, body: dict[str, Any], status: int, param: str
):
    answer = service.http.post(f"/jobs/{job_id}/exports", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_an_export_of_a_base_that_was_swapped_fails(
    service: Stack, job_id: str, models: dict[str, Path]
):
    job, link = service.job(job_id), service.home / "models" / "small"
    link.unlink()
    link.symlink_to(models["other"])

    export = ended(service, asked(service, job_id, format="merged"))
    link.unlink()
    link.symlink_to(models["llama"])

    assert (export["state"], export["error"]["code"]) == ("failed", "base_model_changed")
    assert service.job(job_id) == job
    assert export["id"] not in folders(service, job_id)


def test_an_export_without_progress_is_ended_and_tried_again_and_a_drain_costs_no_try(
    service: Stack, job_id: str
):
    before = folders(service, job_id)
    service.stop("worker")
    service.start("worker", **STOPS, LORAD_HANG_SECONDS="5")
    export = asked(service, job_id, format="merged")
    hung = stopped(service)
    service.wait_until(lambda: not hung.is_running(), what="the one that hangs to be ended")
    service.wait_until(lambda: shown(service, export)["tries"] == 2, what="the next try")
    assert "no progress for 5 s" in service.log("worker")

    process = stopped(service)
    began = time.monotonic()
    assert service.stop("worker", signal.SIGTERM) == 0
    took = time.monotonic() - began

    assert took < 30
    assert not process.is_running()
    waiting = shown(service, export)
    assert (waiting["state"], waiting["tries"]) == ("queued", 1)
    assert folders(service, job_id) == before
    service.start("worker")
    done = ended(service, export)
    assert (done["state"], done["tries"]) == ("succeeded", 2)


class TestExportsThatAreCaughtInTheMiddle:
    """Their worker stops each export between writing and reading back."""

    @pytest.fixture(autouse=True)
    def stopping_worker(self, service: Stack, job_id: str) -> None:
        """Let the worker be one whose exports stop."""
        if service.environment.get("stopping") != "yes":
            service.stop("worker")
            service.start("worker", **STOPS)
            service.environment["stopping"] = "yes"

    def test_a_sabotaged_export_fails_and_the_job_stays(
        self, service: Stack, job_id: str, models: dict[str, Path]
    ):
        before, job = folders(service, job_id), service.job(job_id)
        export = asked(service, job_id, format="merged", checkpoint=2)
        process = stopped(service)
        in_use = service.http.delete(f"/jobs/{job_id}/checkpoints/2")
        (files,) = (service.home / "jobs" / job_id / "exports").glob(".tmp-*/files")

        shutil.copyfile(models["llama"] / "model.safetensors", files / "model.safetensors")
        process.send_signal(signal.SIGCONT)
        export = ended(service, export)

        assert (in_use.status_code, in_use.json()["error"]["code"]) == (409, "in_use")
        assert (export["state"], export["error"]["code"]) == ("failed", "parity_failed")
        assert export["parity"]["problems"]
        assert export["parity"]["mean_kl"] > export["parity"]["bounds"]["max_mean_kl"]
        assert service.job(job_id) == job
        service.wait_until(lambda: folders(service, job_id) == before, what="files to be removed")
        path = f"/jobs/{job_id}/exports/{export['id']}/download"
        assert service.http.get(path).status_code == 409

    def test_a_cancelled_export_stops_and_leaves_no_files(self, service: Stack, job_id: str):
        before = folders(service, job_id)
        export = asked(service, job_id, format="merged")
        process = stopped(service)

        answer = service.http.post(f"/jobs/{job_id}/exports/{export['id']}/cancel")

        assert answer.json()["cancel_requested"]
        assert ended(service, export)["state"] == "cancelled"
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        service.wait_until(lambda: folders(service, job_id) == before, what="files to be removed")

    def test_a_deleted_export_stops_and_leaves_nothing(self, service: Stack, job_id: str):
        before = folders(service, job_id)
        export = asked(service, job_id, format="merged")
        process = stopped(service)

        answer = service.http.delete(f"/jobs/{job_id}/exports/{export['id']}")

        assert answer.json() == {"id": export["id"], "object": "export", "deleted": True}
        service.wait_until(lambda: not process.is_running(), what="its process to end")
        service.wait_until(lambda: folders(service, job_id) == before, what="files to be removed")
        gone = service.http.get(f"/jobs/{job_id}/exports/{export['id']}")
        assert gone.status_code == 404

    def test_an_export_whose_worker_is_killed_is_made_by_the_next(
        self, service: Stack, job_id: str
    ):
        export = asked(service, job_id, format="merged")
        stopped(service)

        service.kill_tree("worker")
        service.wait_until(
            lambda: shown(service, export)["state"] == "queued", what="it to wait again"
        )
        service.wait_until(
            lambda: "lorad worker" in shown(service, export)["waiting_for"],
            what="it to say that there is no worker",
        )
        service.start("worker")
        service.environment["stopping"] = "no"

        done = ended(service, export)
        assert (done["state"], done["tries"]) == ("succeeded", 2)
        names = [name for name in folders(service, job_id) if export["id"] in name]
        assert names == [export["id"]]


def test_a_job_that_was_moved_resumes_to_the_same_adapter_as_at_home(
    service: Stack,
    job_id: str,
    models: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
):
    home, folder = tmp_path_factory.mktemp("y"), tmp_path_factory.mktemp("moved") / "job"
    link_model(home, models["llama"], "small")
    command = [sys.executable, "-m", "app.cli.main"]
    subprocess.run(
        [*command, "export-job", job_id, "--out", str(folder), "--home", str(service.home)],
        env=service.environment,
        check=True,
    )
    away = Stack(home, f"sqlite:///{home / 'lorad.db'}")
    subprocess.run(
        [*command, "import-job", str(folder), "--home", str(home)], env=away.environment, check=True
    )
    more = {"training": {"max_steps": 7}}

    try:
        for name in ("valkey", "api", "worker"):
            away.start(name)
        metrics = away.metrics(job_id)
        for place in (service, away):
            assert place.post(job_id, "resume", more).status_code == 200
        adapters = []
        for place in (service, away):
            done = place.wait_for_state(job_id, "succeeded")
            final = place.home / f"jobs/{job_id}/attempts/{done['attempt']}/final"
            adapters.append((final / "adapter_model.safetensors").read_bytes())
    finally:
        away.close()

    assert [each["step"] for each in metrics] == [1, 2, 3, 4]
    assert done["step"] == 7
    assert adapters[0] == adapters[1]
