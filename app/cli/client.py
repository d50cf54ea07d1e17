"""The client: one method per route of the API that the commands use."""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ConfigDict

from app.cli.transport import DEFAULT_URL, LONG_TIMEOUT, Transport, path_of
from app.domain.certificates import Certificate
from app.domain.checkpoints import Checkpoint
from app.domain.datasets import Dataset, OnBadRows
from app.domain.errors import NotFound
from app.domain.evaluations import Evaluation
from app.domain.exports import Export
from app.domain.gradient_flow import GradientFlow
from app.domain.jobs import Job
from app.domain.memory import MemoryReport
from app.domain.metrics import StepMetrics
from app.domain.plans import Plan
from app.domain.previews import Preview
from app.domain.receipts import Receipt
from app.domain.replays import Verification

# The API takes no longer label; a file may have a longer name.
_NAME_LENGTH = 200


class ModelEntry(BaseModel):
    """A base model as the API lists it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    usable: bool
    problem: str | None
    architecture: str | None
    bytes: int


class Generation(BaseModel):
    """Answers of a model, in the order of the conversations."""

    model_config = ConfigDict(frozen=True, extra="allow")

    checkpoint: str | int
    answers: list[str]
    seconds: float


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AnswerDelta(_Lenient):
    """What a chunk adds to an answer."""

    content: str | None = None


class AnswerChoice(_Lenient):
    """A part of an answer."""

    delta: AnswerDelta


class AnswerError(_Lenient):
    """Why an answer does not go on."""

    message: str
    param: str | None = None
    code: str | None = None


class AnswerChunk(_Lenient):
    """One event of a streamed answer."""

    choices: list[AnswerChoice] = []
    error: AnswerError | None = None


class Client:
    """Use it as a context manager, which closes the connection."""

    def __init__(
        self, url: str, *, api_key: str | None = None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self._api = Transport(url, api_key=api_key, transport=transport)

    @classmethod
    def from_environment(cls) -> Self:
        """Connect to `LORAD_API_URL` with `LORAD_API_KEY`."""
        url = os.environ.get("LORAD_API_URL") or DEFAULT_URL
        return cls(url, api_key=os.environ.get("LORAD_API_KEY"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._api.close()

    def submit(self, spec: dict[str, Any]) -> Job:
        return self._api.create(
            Job, lambda headers: self._api.send("POST", "/jobs", json=spec, headers=headers)
        )

    def job(self, job_id: str) -> Job:
        return self._api.get(path_of("jobs", job_id), Job)

    def jobs(self, *, state: str | None = None, limit: int | None = None) -> list[Job]:
        """Return jobs, newest first."""
        return self._api.list_all("/jobs", Job, limit=limit, state=state)

    def delete_job(self, job_id: str) -> None:
        self._api.send("DELETE", path_of("jobs", job_id))

    def pause(self, job_id: str) -> Job:
        return self._api.post(path_of("jobs", job_id, "pause"), Job)

    def cancel(self, job_id: str) -> Job:
        return self._api.post(path_of("jobs", job_id, "cancel"), Job)

    def resume(
        self,
        job_id: str,
        *,
        checkpoint: int | str | None = None,
        from_scratch: bool = False,
        training: Mapping[str, object] | None = None,
    ) -> Job:
        """Queue a stopped job again, from its newest checkpoint unless told otherwise.

        Args:
            job_id: The job.
            checkpoint: A step or the id of a checkpoint.
            from_scratch: Start at step 0; excludes `checkpoint`.
            training: New values of some keys of the training group.
        """
        body: dict[str, object] = {"training": training} if training else {}
        if checkpoint is not None:
            body["checkpoint"] = checkpoint
        if from_scratch:
            body["from_scratch"] = True
        return self._api.post(path_of("jobs", job_id, "resume"), Job, json=body)

    def metrics(
        self, job_id: str, *, after_step: int = 0, limit: int | None = None
    ) -> list[StepMetrics]:
        path = path_of("jobs", job_id, "metrics")
        return self._api.list_all(
            path,
            StepMetrics,
            limit=limit,
            cursor="step",
            page_size=1000,
            after_step=after_step,
        )

    def evaluations(
        self, job_id: str, *, after_step: int = -1, limit: int | None = None
    ) -> list[Evaluation]:
        path = path_of("jobs", job_id, "evaluations")
        return self._api.list_all(
            path,
            Evaluation,
            limit=limit,
            cursor="step",
            page_size=1000,
            after_step=after_step,
        )

    def verify_resume(self, job_id: str, *, checkpoint: int | str, steps: int) -> Verification:
        """Let a worker do steps again from a checkpoint; the API answers when they are done."""
        body = {"checkpoint": checkpoint, "steps": steps}
        path = path_of("jobs", job_id, "verify-resume")
        # The deadline is the API's setting, and it always answers.
        timeout = httpx2.Timeout(None, connect=5.0)
        return self._api.post(path, Verification, json=body, timeout=timeout)

    def gradient_flow(self, job_id: str, *, step: int | None) -> GradientFlow:
        """Return the table of one sampled step, or of the newest.

        Raises:
            NotFound: That step was not sampled; the message names those that were.
        """
        path = path_of("jobs", job_id, "gradient-flow")
        tables = self._api.list_all(
            path, GradientFlow, limit=None, cursor="step", page_size=20, after_step=0
        )
        for table in reversed(tables):
            if step in (None, table.step):
                return table
        sampled = ", ".join(str(table.step) for table in tables) or "none yet"
        raise NotFound(f"job {job_id} has no such gradient-flow table; sampled steps: {sampled}")

    def plan(self, spec: dict[str, Any]) -> Plan:
        """Let a worker say what a job would do and need."""
        # The deadline is the API's setting, and it always answers.
        timeout = httpx2.Timeout(None, connect=5.0)
        return self._api.post("/jobs/plan", Plan, json=spec, timeout=timeout)

    def memory(self, job_id: str) -> MemoryReport:
        return self._api.get(path_of("jobs", job_id, "memory"), MemoryReport)

    def certificate(self, job_id: str) -> Certificate:
        return self._api.get(path_of("jobs", job_id, "certificate"), Certificate)

    def receipt(self, job_id: str) -> Receipt:
        return self._api.get(path_of("jobs", job_id, "receipt"), Receipt)

    def receipt_lines(self, job_id: str) -> Generator[bytes]:
        """Yield the fate of every line of the job's data set, as JSON lines, piece by piece."""
        try:
            with self._api.stream(path_of("jobs", job_id, "receipt", "lines")) as response:
                yield from response.iter_bytes()
        except httpx2.RequestError as error:
            raise self._api.unreachable(error) from error

    def preview(
        self,
        dataset_id: str,
        *,
        base_model: str,
        field_mapping: Mapping[str, str] | None = None,
        options: Mapping[str, object],
    ) -> Preview:
        """Show rows of a data set as a model will see them; a worker makes the tokens."""
        params = {
            **options,
            "base_model": base_model,
            "field_mapping": json.dumps(field_mapping) if field_mapping else None,
        }
        given = {name: value for name, value in params.items() if value is not None}
        path = path_of("datasets", dataset_id, "preview")
        return self._api.parse(
            Preview, self._api.send("GET", path, params=given, timeout=LONG_TIMEOUT)
        )

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        return self._api.list_whole(path_of("jobs", job_id, "checkpoints"), Checkpoint)

    def logs(
        self, job_id: str, *, offset: int = 0, attempt: int | None = None
    ) -> tuple[bytes, int]:
        """Return the trainer's log from byte `offset` on, and the offset to go on from."""
        params = {"offset": offset} if attempt is None else {"offset": offset, "attempt": attempt}
        path = path_of("jobs", job_id, "logs")
        response = self._api.retry(lambda: self._api.send("GET", path, params=params))
        end = response.headers.get("x-next-offset")
        return response.content, int(end) if end else offset + len(response.content)

    def download(self, job_id: str, checkpoint: str, target: Path) -> None:
        """Save an adapter as a zip file; `target` appears only when it is complete."""
        partial = target.with_name(f".{target.name}.part")
        path = path_of("jobs", job_id, "checkpoints", checkpoint, "download")
        try:
            with self._api.stream(path) as response, partial.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
            partial.replace(target)
        except httpx2.RequestError as error:
            raise self._api.unreachable(error) from error
        finally:
            partial.unlink(missing_ok=True)

    def generate(
        self, job_id: str, questions: list[str], *, checkpoint: int | str, max_new_tokens: int
    ) -> Generation:
        """Answer each question on its own, with the job's adapter or (`base`) without."""
        body = {
            "messages": [[{"role": "user", "content": question}] for question in questions],
            "checkpoint": checkpoint,
            "max_new_tokens": max_new_tokens,
        }
        path = path_of("jobs", job_id, "generate")
        return self._api.post(path, Generation, json=body, timeout=LONG_TIMEOUT)

    def open_chat(self, body: Mapping[str, object]) -> Generator[str]:
        """Yield the data of each event of a streamed answer; app.cli.chat reads it."""
        whole = {**body, "stream": True}
        path = "/v1/chat/completions"
        try:
            # How long it may take is the API's to say, and it always answers.
            with self._api.stream(path, method="POST", json=whole, read_seconds=None) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        yield line.removeprefix("data: ")
        except httpx2.RequestError as error:
            raise self._api.unreachable(error) from error

    def upload(
        self, file: Path, *, name: str | None = None, on_bad_rows: OnBadRows = "refuse"
    ) -> Dataset:
        """Upload a data set; the file is read while it is sent."""

        def send(headers: Mapping[str, str]) -> httpx2.Response:
            with file.open("rb") as content:
                return self._api.send(
                    "POST",
                    "/datasets",
                    files={"file": (file.name, content, "application/octet-stream")},
                    data={"name": name or file.name[:_NAME_LENGTH], "on_bad_rows": on_bad_rows},
                    headers=headers,
                    timeout=LONG_TIMEOUT,
                )

        return self._api.create(Dataset, send)

    def export(self, job_id: str, choices: Mapping[str, object]) -> Export:
        """Ask for an export; `choices` is the body of the request."""
        path = path_of("jobs", job_id, "exports")
        return self._api.create(
            Export,
            lambda headers: self._api.send("POST", path, json=choices, headers=headers),
        )

    def exports(self, job_id: str) -> list[Export]:
        """Return the exports of a job, newest first."""
        return self._api.list_all(path_of("jobs", job_id, "exports"), Export, limit=None)

    def show_export(self, job_id: str, export_id: str) -> Export:
        return self._api.get(path_of("jobs", job_id, "exports", export_id), Export)

    def cancel_export(self, job_id: str, export_id: str) -> Export:
        return self._api.post(path_of("jobs", job_id, "exports", export_id, "cancel"), Export)

    def delete_export(self, job_id: str, export_id: str) -> None:
        self._api.send("DELETE", path_of("jobs", job_id, "exports", export_id))

    def download_export(self, job_id: str, export_id: str, name: str) -> Generator[bytes]:
        """Yield a file of an export, piece by piece."""
        path = path_of("jobs", job_id, "exports", export_id, "download")
        try:
            with self._api.stream(f"{path}?file={quote(name, safe='')}") as response:
                yield from response.iter_bytes()
        except httpx2.RequestError as error:
            raise self._api.unreachable(error) from error

    def datasets(self, *, limit: int | None = None) -> list[Dataset]:
        return self._api.list_all("/datasets", Dataset, limit=limit)

    def dataset(self, dataset_id: str) -> Dataset:
        return self._api.get(path_of("datasets", dataset_id), Dataset)

    def delete_dataset(self, dataset_id: str) -> None:
        self._api.send("DELETE", path_of("datasets", dataset_id))

    def models(self) -> list[ModelEntry]:
        return self._api.list_whole("/models", ModelEntry)

    def open_stream(
        self, job_id: str, *, last_event_id: str, read_seconds: float
    ) -> AbstractContextManager[httpx2.Response]:
        """Open the live stream of a job; app.cli.live reads it."""
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        path = path_of("jobs", job_id, "stream")
        return self._api.stream(path, headers=headers, read_seconds=read_seconds)
