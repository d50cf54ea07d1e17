"""Fixtures of the command line's tests: a small real HTTP server in the API's place."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from app.cli import main
from app.domain.jobs import Desired, Job, JobState
from app.domain.spec import JobSpec

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DATASET_ID = "ds-0123456789abcdef01234567"
JOB_ID = "job-0123456789abcdef01234567"


@dataclass
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    body: bytes | str | dict[str, Any]
    status: int = 200
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    breaks: bool = False
    """Send a longer content-length than the body, then close: a connection lost half way."""


Handler = Callable[[Request], Answer]


class FakeApi:
    """Answers by method and path; remembers what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.routes: dict[str, Handler] = {}
        self.requests: list[Request] = []

    def on(self, route: str, *answers: Answer) -> None:
        """Give the answers in turn, the last one for ever."""
        left = list(answers)
        self.routes[route] = lambda _request: left.pop(0) if len(left) > 1 else left[0]

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        handler = self.routes.get(f"{request.method} {request.path}")
        return handler(request) if handler else problem(404, f"no route {request.path}")


def problem(status: int, message: str, *, param: str | None = None) -> Answer:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "x"}
    return Answer({"error": error}, status=status)


def listing(*items: dict[str, Any], has_more: bool = False) -> Answer:
    return Answer({"object": "list", "data": list(items), "has_more": has_more})


def make_job(state: JobState = JobState.RUNNING, **values: Any) -> dict[str, Any]:
    spec = JobSpec.model_validate({"base_model": "tiny", "dataset": {"id": DATASET_ID}})
    job = Job(
        id=JOB_ID,
        project_id="default",
        name=None,
        state=state,
        state_reason=None,
        desired=Desired.RUN,
        step=3,
        total_steps=10,
        epoch=0.5,
        loss=1.25,
        attempt=1,
        crash_streak=0,
        worker=None,
        error=None,
        spec=spec,
        created_at=NOW,
        started_at=NOW,
        finished_at=None,
        updated_at=NOW,
    )
    return {**job.model_dump(mode="json"), **values}


def make_step(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 10,
        "loss": 2.5,
        "grad_norm": 1.0,
        "param_norm": 1.0,
        "learning_rate": 1e-3,
        "num_tokens": 100,
        "num_target_tokens": 50,
        "step_seconds": 0.5,
        "tokens_per_second": 200.0,
        "peak_memory_bytes": 1000,
        "batch_sha": "0" * 16,
    }


def make_dataset(**values: Any) -> dict[str, Any]:
    return {
        "object": "dataset",
        "id": DATASET_ID,
        "project_id": "default",
        "name": "rows",
        "filename": "rows.jsonl",
        "bytes": 10,
        "sha256": "0" * 64,
        "num_rows": 1,
        "format": "chat",
        "ignored_keys": [],
        "created_at": NOW.isoformat(),
        **values,
    }


def sse(event: str, data: dict[str, Any], *, event_id: str = "") -> str:
    lines = [f"id: {event_id}"] if event_id else []
    return "\n".join([*lines, f"event: {event}", f"data: {json.dumps(data)}", "", ""])


def step_message(step: int) -> str:
    data = {"seq": step, "at": NOW.isoformat(), "kind": "step", "step": step}
    return sse("step", {**data, "metrics": make_step(step)}, event_id=f"1-{step}")


def stream(*messages: str, breaks: bool = False) -> Answer:
    return Answer("".join(messages), type="text/event-stream", breaks=breaks)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """A server on a free loopback port that LORAD_API_URL names."""

    class _Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

        def _serve(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("transfer-encoding") == "chunked":
                body = _read_chunks(self.rfile)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, path, query, headers, body)
            _send(self, fake.answer(request))

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815  (the names that http.server looks for)

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    fake = FakeApi(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("LORAD_API_URL", fake.url)
    monkeypatch.delenv("LORAD_API_KEY", raising=False)
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def lorad(monkeypatch: pytest.MonkeyPatch, capfdbinary) -> Callable[..., Outcome]:
    """Run the command line in this process."""
    for name in ("LORAD_HOME", "LORAD_HOST", "LORAD_PORT", "LORAD_SLOTS"):
        # Options become variables; setting them first makes pytest take them back.
        monkeypatch.setenv(name, "")

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr("sys.argv", ["lorad", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capfdbinary.readouterr()
        code = ended.value.code
        return Outcome(int(code or 0), captured.out.decode(), captured.err.decode())

    return run


def _read_chunks(file: Any) -> bytes:
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        file.readline()
    file.readline()
    return body


def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    body = answer.body
    content = (
        json.dumps(body).encode()
        if isinstance(body, dict)
        else body.encode()
        if isinstance(body, str)
        else body
    )
    with suppress(ConnectionError):  # a client that gave up waiting
        handler.send_response(answer.status)
        handler.send_header("content-type", answer.type)
        handler.send_header("content-length", str(len(content) + (10 if answer.breaks else 0)))
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)
    handler.close_connection = True
