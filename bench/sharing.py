"""How training and answering share a CPU: each alone, and both at once.

A trainer and a model host, both with all threads, run beside each other as they do on a worker
with one slot. The host is nicer, so training must keep most of its speed and the host must still
answer.

    python bench/sharing.py
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LEAST_SHARE_OF_TRAINING = 0.6
LEAST_SHARE_OF_ANSWERING = 0.1
DATA = ROOT / "examples" / "data" / "lighthouse.jsonl"
PROMPT = "Write a long story about a lighthouse keeper who finds a message in a bottle."


def main() -> None:
    given = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        result = measure(given, Path(name))
    for name, value in result.items():
        print(f"{name:34}{value:12.3f}" if isinstance(value, float) else f"{name:34} {value}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    if result["share_of_training"] < LEAST_SHARE_OF_TRAINING:
        raise SystemExit("answers take too much from training")
    if result["share_of_answering"] < LEAST_SHARE_OF_ANSWERING:
        raise SystemExit("training starves answers")


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train alone, answer alone, and do both."""
    alone = Training(given, folder / "alone")
    alone.wait()
    with Host(given, folder) as host:
        tokens_alone = host.tokens_per_second(lambda seconds: seconds > given.seconds)
        beside = Training(given, folder / "beside")
        while not beside.step_seconds:
            time.sleep(0.2)
        tokens_beside = host.tokens_per_second(lambda _: beside.is_over)
    # The first step of a run warms up.
    step_alone, step_beside = (statistics.median(each.step_seconds[1:]) for each in (alone, beside))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": given.model.name,
        "num_threads": given.threads,
        "num_host_threads": given.host_threads,
        "niceness": given.niceness,
        "load_average": os.getloadavg(),
        "step_seconds_alone": step_alone,
        "step_seconds_beside": step_beside,
        "share_of_training": step_alone / step_beside,
        "tokens_per_second_alone": tokens_alone,
        "tokens_per_second_beside": tokens_beside,
        "share_of_answering": tokens_beside / tokens_alone,
    }


class Training:
    """A trainer process and what it measured."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        from tests.training_runs import Workplace
        from worker.launcher import FreshLauncher

        folder.mkdir()
        rows = [json.loads(line) for line in DATA.read_text().splitlines()[:160]]
        run = Workplace(folder, given.model).run_file(
            rows=rows,
            num_threads=given.threads,
            training={"per_device_train_batch_size": 4, "max_steps": given.steps},
            lora={"r": 8, "lora_alpha": 16, "target_modules": "standard"},
        )
        self._run = run
        self._process = FreshLauncher().launch("trainer", run.attempt_folder, folder / "log")

    def wait(self) -> None:
        """Wait until the process has ended, its last checks included."""
        assert self._process.ended.wait(300)
        assert self._process.exit_status == 0, "the trainer failed"

    @property
    def is_over(self) -> bool:
        return len(self.step_seconds) >= self._run.spec.training.max_steps  # type: ignore[operator]

    @property
    def step_seconds(self) -> list[float]:
        from app.domain.events import StepEvent
        from tests.training_runs import read_events

        assert self._process.exit_status in (None, 0), "the trainer failed"
        events = (each for each in read_events(self._run) if isinstance(each, StepEvent))
        return [each.metrics.step_seconds for each in events]


class Host:
    """A model host that always has two answers under way."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        from app.domain.inference import HostKey
        from worker.host_messages import HOST_FILE, HostFile
        from worker.launcher import FreshLauncher

        self._key = HostKey(model_folder=given.model)
        told = HostFile(
            key=self._key,
            device="cpu",
            num_threads=given.host_threads,
            most_adapters=1,
            niceness=given.niceness,
        )
        (folder / HOST_FILE).write_text(told.model_dump_json())
        self._process = FreshLauncher().launch("host", folder, folder / "host.log")
        self._channel = socket.socket(fileno=self._process.control_fd)
        self._lines = self._channel.makefile("rb")
        self._num_asked = 0

    def __enter__(self) -> "Host":
        next(self._lines)  # it is ready
        self._ask()
        self._ask()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._lines.close()
        self._channel.close()

    def tokens_per_second(self, is_over: Any) -> float:
        """Count pieces of answers until `is_over(seconds)`."""
        from app.domain.inference import Finished, Piece
        from worker.host_messages import FROM_HOST, Reports

        began, num_tokens = time.perf_counter(), 0
        while not is_over(time.perf_counter() - began):
            reports = FROM_HOST.validate_json(next(self._lines))
            assert isinstance(reports, Reports)
            for event in (event for events in reports.events.values() for event in events):
                num_tokens += isinstance(event, Piece)
                if isinstance(event, Finished):
                    self._ask()
        return num_tokens / (time.perf_counter() - began)

    def _ask(self) -> None:
        from app.domain.inference import ChatPrompt, InferenceRequest, Sampling
        from worker.host_messages import Ask, line

        self._num_asked += 1
        request = InferenceRequest(
            id=f"inf-{self._num_asked}",
            host=self._key,
            prompt=ChatPrompt(messages=({"role": "user", "content": PROMPT},)),
            sampling=Sampling(temperature=1.0, max_tokens=200),
        )
        self._channel.sendall(line(Ask(request=request)))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", type=Path, default=ROOT / ".cache" / "models" / "smollm2-135m-instruct"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of answering alone")
    parser.add_argument("--niceness", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--host-threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "sharing.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
