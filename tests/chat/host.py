"""A model host without a model: a thread that takes requests and says what a test tells it to."""

import threading
import time
from collections.abc import Callable, Sequence

from app.domain.inference import (
    Began,
    ChatPrompt,
    Event,
    Failed,
    Finished,
    InferenceRequest,
    Piece,
    Taken,
    TokenLogprob,
)
from app.inference_queue import InferenceQueue

PROMPT_TOKENS = 7
WORDS = ("The", " sky", " is", " blue.")
LEASE_SECONDS = 1.0
_LOOK_SECONDS = 0.02

Script = Callable[["FakeHost", InferenceRequest], None]


def logprobs(word: str, count: int | None) -> tuple[TokenLogprob, ...]:
    if count is None:
        return ()
    top = ((word, -0.5), ("\ufffd", -1.5))[:count]
    return (TokenLogprob(token=word, logprob=-0.5, token_bytes=tuple(word.encode()), top=top),)


def beginning() -> list[Event]:
    return [Taken(worker_id="worker-fake"), Began(num_prompt_tokens=PROMPT_TOKENS)]


def answer(words: Sequence[str] = WORDS) -> Script:
    """Answer with these words, each of the n answers with its number in front."""

    def run(host: "FakeHost", request: InferenceRequest) -> None:
        host.report(request, *beginning())
        for index in range(request.sampling.n):
            said = words if request.sampling.n == 1 else (f"{index}:", *words)
            for word in said:
                found = logprobs(word, request.sampling.top_logprobs)
                host.report(request, Piece(index=index, text=word, logprobs=found))
            host.report(request, Finished(index=index, reason="stop", num_tokens=len(said)))

    return run


def fail(failed: Failed, *, after: Sequence[Event] = ()) -> Script:
    def run(host: "FakeHost", request: InferenceRequest) -> None:
        host.report(request, *after, failed)

    return run


def begin_and_wait(host: "FakeHost", request: InferenceRequest) -> None:
    """Say one word and write no more until somebody cancels."""
    host.report(request, *beginning(), Piece(index=0, text="Well"))
    host.wait_for_cancel(request)


def vanish(*first: Event) -> Script:
    """Take the request, report some events, and renew nothing: killed."""

    def run(host: "FakeHost", request: InferenceRequest) -> None:
        host.report(request, *first)
        host.kept.discard(request.id)

    return run


class FakeHost:
    """Takes requests of some hosts as long as it is open, each in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.queue = InferenceQueue(url, "worker-fake", lease_seconds=LEASE_SECONDS)
        self.script: Script = answer()
        self.digests: set[str] = set()
        self.takes = True
        self.requests: list[InferenceRequest] = []
        self.cancelled: set[str] = set()
        self.kept: set[str] = set()
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._take, self._keep)
        ]
        for thread in self._threads:
            thread.start()

    def report(self, request: InferenceRequest, *events: Event) -> None:
        self.queue.report(request.id, events)

    def wait_for_cancel(self, request: InferenceRequest) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not self._is_over.is_set():
            if self.queue.cancelled([request.id]):
                self.cancelled.add(request.id)
                return
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(5)
        self.queue.close()

    def _take(self) -> None:
        while not self._is_over.is_set():
            for digest in list(self.queue.waiting()) if self.takes else ():
                request = self.queue.next(digest, 0)
                if request is not None:
                    self.requests.append(request)
                    self.kept.add(request.id)
                    threading.Thread(target=self._answer, args=[request], daemon=True).start()
            time.sleep(_LOOK_SECONDS)

    def _answer(self, request: InferenceRequest) -> None:
        self.script(self, request)
        self.kept.discard(request.id)

    def _keep(self) -> None:
        while not self._is_over.wait(LEASE_SECONDS / 5):
            self.queue.keep(list(self.kept), LEASE_SECONDS)


def last_words(request: InferenceRequest) -> str:
    """Return what the last turn of a request says."""
    assert isinstance(request.prompt, ChatPrompt)
    return str(request.prompt.messages[-1]["content"])
