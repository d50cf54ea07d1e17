"""The whole path in one go: train a real model through the API, pause it, resume it, ask it.

Run by `make demo`. Works in `./.lorad-demo` (or LORAD_DEMO_HOME) and can be run again there.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from app.cli import actions, output, screens, tether, watch
from app.cli.client import Client
from app.cli.exits import ExitCode
from app.cli.serve import require_free
from app.domain.errors import LoradError
from app.domain.evaluations import Evaluation
from app.domain.jobs import Job, JobState
from app.domain.metrics import StepMetrics

EXAMPLES = Path(__file__).resolve().parent
SPEC = EXAMPLES / "quickstart.yaml"
MODEL = "smollm2-135m-instruct"
# None of these is in the data.
QUESTIONS = [
    "What is the capital of France?",
    "Explain what a computer is.",
    "Why does the wind blow?",
]
OPENING, CLOSING = "Keeper's log:", "Lamp burning, out."
UP_SECONDS, DOWN_SECONDS = 90, 60


def main() -> int:
    """Run the demo; 0 when the tuned answers show what the data teaches."""
    started = time.monotonic()
    home = Path(os.environ.get("LORAD_DEMO_HOME") or ".lorad-demo").absolute()
    title("1. The base model: SmolLM2-135M-Instruct")
    prepare_model(home)
    title("2. Everything on this machine: lorad up")
    with lorad_up(home) as url, Client(url) as client:
        job = train(client)
        summarize(client, job, home)
        is_taught = ask(client, job)
    title("Try next")
    show_next(home, job)
    output.show_text(f"\nThe demo took {time.monotonic() - started:.0f} s.")
    return 0 if is_taught else 1


def prepare_model(home: Path) -> None:
    if (home / "models" / MODEL).is_dir():
        output.show_text(f"{home / 'models' / MODEL} is there already")
        return
    lorad = [sys.executable, "-m", "app.cli.main"]
    subprocess.run([*lorad, "models", "add", "smollm2", "--home", str(home)], check=True)


@contextmanager
def lorad_up(home: Path) -> Generator[str]:
    """Run `lorad up` on a free port and yield its URL; whatever happens, it ends with the demo."""
    port = require_free("127.0.0.1", 0)
    command = [
        *(sys.executable, tether.__file__, str(os.getpid())),
        *(sys.executable, "-m", "app.cli.main", "up"),
        *("--home", str(home), "--host", "127.0.0.1", "--port", str(port)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield wait_for_url(process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        has_answered = bool(selector.select(UP_SECONDS))
    url = process.stdout.readline().strip() if has_answered else ""
    if not url:
        raise LoradError("`lorad up` did not start")
    return url


def train(client: Client) -> Job:
    """Train, stop in the middle, and go on from a checkpoint."""
    title("3. Submit a LoRA job: examples/quickstart.yaml")
    cancel_leftovers(client)
    job = actions.submit(client, str(SPEC), [])
    total = job.spec.training.max_steps or 0
    with PausingScreen(client, job.id, at_step=total // 2 + 2) as screen:
        job = watch.follow(client, job.id, screen, until_paused=True)

    title(f"4. Paused at step {job.step} of {job.total_steps}; nothing runs now")
    saved = [point.step for point in client.checkpoints(job.id) if not point.superseded]
    step = max(step for step in saved if step < job.step)
    output.show_text(f"state {job.state}, checkpoints at steps {sorted(saved)}")

    title(f"5. Resume from the checkpoint of step {step}")
    client.resume(job.id, checkpoint=step)
    with screens.screen() as screen:
        job = watch.follow(client, job.id, screen, until_paused=False)
    if job.state != JobState.SUCCEEDED:
        raise LoradError(watch.describe(job))
    return job


def cancel_leftovers(client: Client) -> None:
    """Cancel what an interrupted demo left, which would run first."""
    for job in client.jobs():
        if not job.is_terminal:
            client.cancel(job.id)
            output.show_text(f"cancelled {job.id} of an earlier demo")


class PausingScreen:
    """The normal screen, which asks for a pause when a step is reached."""

    def __init__(self, client: Client, job_id: str, *, at_step: int) -> None:
        self._screen = screens.screen()
        self._client = client
        self._job_id = job_id
        self._at_step = at_step
        self._is_asked = False

    def __enter__(self) -> Self:
        self._screen.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._screen.__exit__(*error)

    def state(self, job: Job) -> None:
        self._screen.state(job)

    def remember(self, metrics: StepMetrics) -> None:
        self._screen.remember(metrics)

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None:
        self._screen.progress(metrics, total=total, eta_seconds=eta_seconds)
        if metrics.step >= self._at_step and not self._is_asked:
            self._is_asked = True
            self.note(f"POST /jobs/{self._job_id}/pause")
            self._client.pause(self._job_id)

    def evaluation(self, found: Evaluation) -> None:
        self._screen.evaluation(found)

    def note(self, message: str) -> None:
        self._screen.note(message)


def summarize(client: Client, job: Job, home: Path) -> None:
    title("6. What happened")
    rows = client.metrics(job.id)
    saved = [point.step for point in client.checkpoints(job.id) if not point.superseded]
    seconds = sum(row.step_seconds for row in rows)
    tokens = sum(row.num_tokens for row in rows)
    output.show_text(f"loss         {rows[0].loss:.3f} -> {rows[-1].loss:.3f}")
    output.show_text(
        f"steps        {len(rows)} in {seconds:.0f} s, {tokens / seconds:.0f} tokens/s"
    )
    output.show_text(f"attempts     {job.attempt}")
    output.show_text(f"checkpoints  {sorted(saved)}")
    folder = home / "jobs" / job.id
    output.show_text(f"files in {folder}:")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            size = output.size(path.stat().st_size)
            output.show_text(f"  {path.relative_to(folder)}  {size}")


def ask(client: Client, job: Job) -> bool:
    """Print base and tuned answers; True when every tuned one has the taught form."""
    title("7. Questions that are not in the data")
    base = client.generate(job.id, QUESTIONS, checkpoint="base", max_new_tokens=48)
    tuned = client.generate(job.id, QUESTIONS, checkpoint="final", max_new_tokens=64)
    is_taught = True
    for question, before, after in zip(QUESTIONS, base.answers, tuned.answers, strict=True):
        has_form = after.strip().startswith(OPENING) and after.strip().endswith(CLOSING)
        is_taught = is_taught and has_form
        output.show_text(f"\nQ      {question}")
        output.show_text(f"base   {shorten(before)}")
        output.show_text(f"tuned  {after.strip()}   [{'ok' if has_form else 'NOT as taught'}]")
    return is_taught


def show_next(home: Path, job: Job) -> None:
    python = Path(sys.executable).parent
    adapter = home / "jobs" / job.id / "attempts" / str(job.attempt) / "final"
    output.show_text(f"{python}/lorad up --home {home}")
    output.show_text("and in another terminal:")
    output.show_text(f"{python}/lorad show {job.id}")
    output.show_text(f"{python}/lorad metrics {job.id}")
    output.show_text(f"{python}/lorad resume {job.id} --set max_steps=60 --watch")
    output.show_text(f'{python}/lorad generate {job.id} "Why is the sky dark at night?"')
    output.show_text(f"The adapter is plain PEFT: {adapter}")


def shorten(text: str, *, length: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length]} ..."


def title(text: str) -> None:
    output.show_text(f"\n== {text}")
    sys.stdout.flush()


if __name__ == "__main__":
    # Like Ctrl-C, so that what the demo started is stopped in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except LoradError as error:
        output.report(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
