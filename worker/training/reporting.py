"""events.jsonl: what the trainer tells the supervisor, one line per event."""

import errno
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import JsonValue

from app.domain import failpoints
from app.domain.certificates import Certificate
from app.domain.errors import StartupError
from app.domain.evaluations import Evaluation
from app.domain.events import (
    CertificateEvent,
    CheckpointEvent,
    EvaluationEvent,
    FailedEvent,
    FinishedEvent,
    GradientFlowEvent,
    MemoryEvent,
    NoticeEvent,
    ReadyEvent,
    ReceiptEvent,
    StepEvent,
    StoppedEvent,
    TrainerEvent,
)
from app.domain.gradient_flow import GradientFlow
from app.domain.memory import MemoryReport
from app.domain.metrics import StepMetrics
from app.domain.receipts import Receipt
from app.domain.runs import StopReason


class EventLog:
    """Appends events to a new file; each is one write, so a reader never sees half a line twice."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o644)
        except FileExistsError as error:
            raise StartupError(f"{path.name} exists: this attempt was started before") from error
        self._seq = 0
        self._bytes = 0
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def step(self) -> int:
        """Step of the newest event."""
        return self._step

    def ready(self, *, step: int, **facts: Any) -> None:
        self._append(ReadyEvent(**self._stamp(step), **facts))

    def step_done(self, metrics: StepMetrics) -> None:
        self._append(StepEvent(**self._stamp(metrics.step), metrics=metrics))

    def checkpoint(self, *, step: int, **facts: Any) -> None:
        self._append(CheckpointEvent(**self._stamp(step), **facts), durable=True)

    def notice(self, *, step: int, code: str, message: str, **data: JsonValue) -> None:
        self._append(NoticeEvent(**self._stamp(step), code=code, message=message, data=data))

    def receipt(self, receipt: Receipt, *, step: int) -> None:
        self._append(ReceiptEvent(**self._stamp(step), receipt=receipt), durable=True)

    def evaluation(self, evaluation: Evaluation) -> None:
        self._append(EvaluationEvent(**self._stamp(evaluation.step), evaluation=evaluation))

    def gradient_flow(self, flow: GradientFlow) -> None:
        self._append(GradientFlowEvent(**self._stamp(flow.step), gradient_flow=flow))

    def memory(self, report: MemoryReport, *, step: int) -> None:
        self._append(MemoryEvent(**self._stamp(step), memory=report))

    def certificate(self, certificate: Certificate, *, step: int) -> None:
        event = CertificateEvent(**self._stamp(step), certificate=certificate)
        self._append(event, durable=True)

    def finished(self, *, step: int, manifest_sha256: str, num_tokens: int) -> None:
        event = FinishedEvent(
            **self._stamp(step), manifest_sha256=manifest_sha256, num_tokens=num_tokens
        )
        self._append(event, durable=True)

    def stopped(self, *, step: int, reason: StopReason) -> None:
        self._append(StoppedEvent(**self._stamp(step), reason=reason), durable=True)

    def disk_full(self, *, needed_bytes: int) -> None:
        """Say that the run stopped because there is no room; there may be none for this either."""
        stamp = self._stamp(self._step)
        with suppress(OSError):
            self._append(StoppedEvent(**stamp, reason="disk_full", needed_bytes=needed_bytes))

    def failed(self, *, code: str, message: str) -> None:
        self._append(
            FailedEvent(**self._stamp(self._step), code=code, message=message), durable=True
        )

    def at_step(self, step: int) -> None:
        """Note the step that a later `failed` event belongs to, whether or not it was logged."""
        self._step = step

    def _stamp(self, step: int) -> dict[str, Any]:
        self._step = step
        return {"seq": self._seq + 1, "at": datetime.now(UTC), "step": step}

    def _append(self, event: TrainerEvent, *, durable: bool = False) -> None:
        failpoints.hit("trainer.event.write")
        line = event.model_dump_json().encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes of an event written")
        except OSError:
            os.ftruncate(self._descriptor, self._bytes)  # half a line would spoil the next one
            raise
        self._bytes += written
        self._seq = event.seq
        if durable:
            failpoints.hit("trainer.event.fsync")
            os.fsync(self._descriptor)
