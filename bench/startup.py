"""How long a user waits: from the submission to the end of the first step, and after a kill.

Starts the whole service on the real model (`lorad up` as users do), then measures, several times:

- warm submit to the end of step 1, less the step's own time,
- SIGKILL of the trainer to the end of the next step,
- SIGKILL of everything and `lorad up` again, to the end of the next step.

Prints a table and writes bench/results/startup.json. Needs the worker and embedded extras, and the
model folder that `make demo` or the tests prepare.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import psutil

_ROOT = Path(__file__).parent.parent
_MODEL = _ROOT / ".cache" / "models" / "smollm2-135m-instruct"
_DATA = _ROOT / "examples" / "data"
_LIBRARIES = ("torch", "transformers", "peft", "celery", "sqlalchemy", "fastapi")


class Service:
    """`lorad up` on a home of its own."""

    def __init__(self, home: Path, model: Path) -> None:
        self._home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        (home / "models").mkdir()
        (home / "models" / model.name).symlink_to(model)
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=60)

    def start(self) -> None:
        command = [sys.executable, "-m", "app.cli.main", "up", "--home", str(self._home)]
        with (self._home / "up.log").open("ab") as log:
            self._up = subprocess.Popen(
                [*command, "--port", str(self._port)],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LORAD_LOG_LEVEL": "warning"},
            )
        wait_until(self._is_ready)

    def family(self) -> list[psutil.Process]:
        up = psutil.Process(self._up.pid)
        return [*up.children(recursive=True), up]

    def trainer(self) -> psutil.Process:
        for process in self.family():
            if "worker.forkserver" in process.cmdline() and process.children():
                return process.children()[0]
        raise RuntimeError("no trainer is running")

    def kill_all(self) -> None:
        for process in self.family():
            process.kill()
        self._up.wait()

    def stop(self) -> None:
        self._up.send_signal(signal.SIGINT)
        self._up.wait(timeout=60)

    def submit(self, dataset: str, model: str, steps: int) -> str:
        body = {
            "base_model": model,
            "dataset": {"id": dataset},
            "preset": "standard",
            "training": {
                "max_steps": steps,
                "save_steps": 5,
                "per_device_train_batch_size": 4,
                "warmup_steps": 0,
            },
        }
        answer = self.http.post("/jobs", json=body)
        answer.raise_for_status()
        return answer.json()["id"]

    def wait_for_event(self, job_id: str, *, fence: int) -> dict[str, Any]:
        """Return the first step event of a later attempt than `fence`, as the stream shows it."""
        headers = {"Last-Event-ID": f"{fence}-{10**9}"}
        with self.http.stream("GET", f"/jobs/{job_id}/stream", headers=headers) as stream:
            kind = ""
            for line in stream.iter_lines():
                name, _, value = line.partition(": ")
                kind = value if name == "event" else kind
                if name == "data" and kind == "step":
                    return json.loads(value)
        raise RuntimeError("the stream ended without a step")

    def _is_ready(self) -> bool:
        try:
            ready = self.http.get("/readyz").json()
        except httpx2.TransportError:
            return False
        return ready.get("status") == "ok"


def wait_until(condition: Any, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.01)


def measure_submit(service: Service, dataset: str, model: str) -> float:
    """Return seconds from POST /jobs to the end of step 1 as a client sees it, less the step."""
    began = time.monotonic()
    job_id = service.submit(dataset, model, 1)
    event = service.wait_for_event(job_id, fence=0)
    waited = time.monotonic() - began
    wait_until(lambda: service.http.get(f"/jobs/{job_id}").json()["state"] == "succeeded")
    return waited - event["metrics"]["step_seconds"]


def measure_kill(service: Service, dataset: str, model: str, *, whole_tree: bool) -> float:
    """Return seconds from a SIGKILL in the middle of a run to the end of the next step."""
    job_id = service.submit(dataset, model, 400)
    wait_until(lambda: service.http.get(f"/jobs/{job_id}").json()["step"] >= 7)
    began = time.monotonic()
    if whole_tree:
        service.kill_all()
        service.start()
    else:
        service.trainer().kill()
    service.wait_for_event(job_id, fence=1)
    waited = time.monotonic() - began
    service.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    wait_until(lambda: service.http.get(f"/jobs/{job_id}").json()["state"] == "cancelled")
    return waited


def upload(service: Service) -> str:
    path = sorted(_DATA.glob("*.jsonl"))[0]
    with path.open("rb") as file:
        answer = service.http.post("/datasets", files={"file": (path.name, file)})
    answer.raise_for_status()
    return answer.json()["id"]


def run(repeats: int, model: Path) -> dict[str, list[float]]:
    home = Path(tempfile.mkdtemp(prefix="lorad-bench-"))
    service = Service(home, model)
    try:
        service.start()
        dataset = upload(service)
        measure_submit(service, dataset, model.name)  # the first start fills the caches
        results = {
            "submit": [measure_submit(service, dataset, model.name) for _ in range(repeats)],
            "trainer killed": [
                measure_kill(service, dataset, model.name, whole_tree=False) for _ in range(repeats)
            ],
            "everything killed": [
                measure_kill(service, dataset, model.name, whole_tree=True)
                for _ in range(min(repeats, 3))
            ],
        }
        service.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure waiting times of the whole service.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, default=_MODEL)
    parser.add_argument("--out", type=Path, default=_ROOT / "bench" / "results" / "startup.json")
    arguments = parser.parse_args()

    results = run(arguments.repeats, arguments.model)

    print(f"{'seconds':24}{'median':>8}{'best':>8}{'worst':>8}{'runs':>6}")
    for name, seconds in results.items():
        row = (statistics.median(seconds), min(seconds), max(seconds))
        print(f"{name:24}" + "".join(f"{each:8.2f}" for each in row) + f"{len(seconds):6}")
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in _LIBRARIES},
        "seconds": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
