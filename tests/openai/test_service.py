"""OpenAI's clients drive the whole service: real processes, killed between any two calls."""

import asyncio
import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import httpx2
import openai
import psutil
import pytest

from app.cli import tether
from tests.fixtures.stack import Stack
from tests.openai.conftest import lines

pytestmark = pytest.mark.services

Result = TypeVar("Result")
MODEL = "org/tiny"
NUM_STEPS = 20
TRAINING = {"max_steps": NUM_STEPS, "save_steps": 5, "per_device_train_batch_size": 2}


def client_of(service: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="any", timeout=60)


def until(ask: Callable[[], Result], is_so: Callable[[Result], bool]) -> Result:
    """Ask until the answer is as wanted."""
    deadline = time.monotonic() + 60
    while not is_so(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer


# Forks an API for every line that it reads: all but a tenth of the start of one is importing.
_FORKING = """
import ctypes, os, signal, sys
import uvicorn
import app.main
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # it ends with its parent
        os.dup2(2, 1)
        uvicorn.main(sys.argv[1:])
    print(pid, flush=True)
"""


class Restarted:
    """Kills the API and starts another one before every call."""

    def __init__(self, service: Stack) -> None:
        self._service = service
        self._pid: int | None = None
        arguments = ["--factory", "app.main:create_app", "--port", str(service.port)]
        command = [sys.executable, "-c", _FORKING, *arguments]
        with (service.home / "api.log").open("ab") as log:
            self._forking = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=service.environment,
                text=True,
            )

    def __call__(self, call: Callable[..., Result], *args: Any, **options: Any) -> Result:
        self._kill()
        assert self._forking.stdin is not None
        assert self._forking.stdout is not None
        self._forking.stdin.write("\n")
        self._forking.stdin.flush()
        self._pid = int(self._forking.stdout.readline())
        self._service.wait_until(self._answers, what="the API to start")
        return call(*args, **options)

    def close(self) -> None:
        """Let the service have an API of its own again."""
        self._kill()
        self._forking.kill()
        self._forking.communicate()
        self._service.start("api")

    def _kill(self) -> None:
        if self._pid is None:
            self._service.kill_tree("api")
            return
        pid = self._pid
        os.kill(pid, signal.SIGKILL)
        self._service.wait_until(lambda: not psutil.pid_exists(pid), what="the API to be gone")

    def _answers(self) -> bool:
        with suppress(httpx2.TransportError):
            return self._service.http.get("/healthz").status_code == 200
        return False


@pytest.fixture
def restarted(service: Stack) -> Iterator[Restarted]:
    restarted = Restarted(service)
    yield restarted
    restarted.close()


def test_the_server_killed_between_any_two_calls_changes_nothing(
    service: Stack, restarted: Restarted
):
    client = client_of(service)
    jobs = client.fine_tuning.jobs
    file_id = uploaded(client, restarted)
    job = restarted(
        jobs.create,
        model=MODEL,
        training_file=file_id,
        suffix="walk",
        metadata={"walk": "1"},
        extra_body={"training": TRAINING},
    )

    until(lambda: jobs.list_events(job.id).data[0].type, lambda kind: kind == "metrics")
    restarted(jobs.pause, job.id)
    paused = until(lambda: jobs.retrieve(job.id), lambda each: str(each.status) == "paused")
    assert restarted(jobs.retrieve, job.id) == paused
    restarted(jobs.resume, job.id)
    done = until(lambda: jobs.retrieve(job.id), lambda each: each.status == "succeeded")

    assert restarted(jobs.retrieve, job.id) == done
    assert [each.id for each in restarted(jobs.list, metadata={"walk": "1"})] == [job.id]
    look_at_what_it_made(client, restarted, done)
    tokens = sum(each["num_target_tokens"] for each in service.metrics(own_id(job.id)))
    assert done.trained_tokens == tokens


def own_id(job_id: str) -> str:
    return job_id.replace("ftjob-", "job-")


def uploaded(client: openai.OpenAI, restarted: Restarted) -> str:
    """Upload a file in two parts."""
    content = lines()
    upload = restarted(
        client.uploads.create,
        bytes=len(content),
        filename="rows.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
    )
    parts = [
        restarted(client.uploads.parts.create, upload.id, data=each).id
        for each in (content[:500], content[500:])
    ]
    file = restarted(client.uploads.complete, upload.id, part_ids=parts).file
    assert file is not None
    assert restarted(client.files.wait_for_processing, file.id).status == "processed"
    return file.id


def look_at_what_it_made(client: openai.OpenAI, restarted: Restarted, done: Any) -> None:
    """Check events, checkpoints, models and results of a job that succeeded."""
    jobs = client.fine_tuning.jobs
    events = list(restarted(jobs.list_events, done.id, limit=7))
    steps: list[Any] = [event.data for event in events if event.type == "metrics"]
    told = [each["step"] for each in steps if "train_loss" in each]
    assert told == list(range(NUM_STEPS, 0, -1))
    checkpoints = list(restarted(jobs.checkpoints.list, done.id, limit=1))
    assert NUM_STEPS in [each.step_number for each in checkpoints]
    for name in (MODEL, done.fine_tuned_model, checkpoints[-1].fine_tuned_model_checkpoint):
        assert restarted(client.models.retrieve, name).id == name
    look_at_an_answer(client, restarted, done.fine_tuned_model)
    table = restarted(client.files.content, done.result_files[0]).text
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [int(row["step"]) for row in rows] == list(range(1, NUM_STEPS + 1))


def look_at_an_answer(client: openai.OpenAI, restarted: Restarted, model: str) -> None:
    """Check that a model answers the same after the API was killed, whole and in pieces."""
    ask: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "What is 1?"}],
        "max_tokens": 6,
        "temperature": 0,
    }
    whole = restarted(client.chat.completions.create, **ask)
    chunks = restarted(client.chat.completions.create, **ask, stream=True)

    assert (whole.model, whole.choices[0].finish_reason) == (model, "length")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 6
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content != ""


def test_the_async_client_does_the_same(service: Stack):
    asyncio.run(_asynchronously(service))


async def _asynchronously(service: Stack) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{service.port}/v1", api_key="any", timeout=60
    ) as client:
        jobs = client.fine_tuning.jobs
        file = await client.files.create(file=("rows.jsonl", lines()), purpose="fine-tune")
        await client.files.wait_for_processing(file.id)
        made = await asyncio.gather(
            *(
                jobs.create(
                    model=MODEL,
                    training_file=file.id,
                    metadata={"async": str(n)},
                    extra_body={"training": {"max_steps": 4, "save_steps": 2}, "priority": -n},
                )
                for n in range(3)
            )
        )
        found = [each.id async for each in jobs.list(limit=1, metadata={"async": "1"})]
        assert found == [made[1].id]
        assert (await jobs.cancel(made[2].id)).status == "cancelled"
        with pytest.raises(openai.ConflictError):
            await jobs.cancel(made[2].id)
        await _ended(client, made[0].id)
        steps = [each.step_number async for each in jobs.checkpoints.list(made[0].id, limit=1)]
        assert steps == [4, 2]
        resumed = await jobs.resume(
            made[0].id, extra_body={"from_checkpoint": 2, "training": {"max_steps": 6}}
        )
        assert resumed.status in ("queued", "validating_files", "running")
        done = await _ended(client, made[0].id)
        assert done.status == "succeeded"
        events = [each async for each in jobs.list_events(made[0].id, limit=5)]
        metrics: list[Any] = [each.data for each in events if each.type == "metrics"]
        told = [each["step"] for each in metrics if "train_loss" in each]
        assert told == [6, 5, 4, 3, 4, 3, 2, 1]
        content = await client.files.content(file.id)
        assert content.content == lines()


async def _ended(client: openai.AsyncOpenAI, job_id: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            job = await client.fine_tuning.jobs.retrieve(job_id)
            if job.status in ("succeeded", "failed", "cancelled"):
                return job
            await asyncio.sleep(0.1)
