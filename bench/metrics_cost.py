"""What the metric path costs: everything a trainer does per step only to be watched.

The path is gathering the measurements, writing the event, and asking whether the step is sampled
for gradient flow. It is timed by itself, thousands of times, because a thousandth of a step drowns
in the noise of whole steps; then it is divided by the median step of the same process. A sampled
step's gradient flow is timed too and spread over the steps between two samples.

    python bench/metrics_cost.py --data rows.jsonl
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LIMIT = 0.003
FLOW_EVERY = 50
TRAINING = {"per_device_train_batch_size": 4, "max_steps": 100_000, "warmup_steps": 0.0}


def main() -> None:
    given = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), given)
    print(f"{'step':28}{result['step_seconds'] * 1e3:12.2f} ms")
    print(f"{'metric path':28}{result['path_seconds'] * 1e6:12.1f} us")
    print(f"{'gradient flow, a sample':28}{result['flow_seconds'] * 1e3:12.2f} ms")
    print(f"{'metrics / step':28}{result['metrics_fraction']:12.4%}")
    print(f"{'with flow every 50 steps':28}{result['with_flow_fraction']:12.4%}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    if result["metrics_fraction"] > LIMIT:
        raise SystemExit(f"the metric path costs more than {LIMIT:.1%} of a step")


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Time steps, the path and a gradient-flow sample of one run."""
    from worker import trainer

    trainer.preload()
    from tests.training_runs import Workplace
    from worker.training import metrics
    from worker.training.prepare import prepare
    from worker.training.reporting import EventLog
    from worker.training.run import take_step
    from worker.training.step import StepResult

    rows = [json.loads(line) for line in given.data.read_text().splitlines()[: given.rows]]
    run = Workplace(folder, given.model).run_file(
        rows=rows,
        num_threads=given.threads,
        training=TRAINING,
        lora={"r": 8, "lora_alpha": 16, "target_modules": "standard"},
        monitoring={"gradient_flow_steps": FLOW_EVERY},
    )
    with EventLog(folder / "events.jsonl") as log:
        session = prepare(run, log)
        steps = [seconds_of(lambda: take_step(session, log)) for _ in range(given.steps + 4)][4:]
        result = StepResult(1.5, 0.5, 12.5, 800, 400)

        def path() -> None:
            session.flow.inspection(FLOW_EVERY + 1)
            session.flow.report(log, step=7, learning_rate=1e-4, num_updates=7)
            if session.is_logged(7):
                log.step_done(
                    metrics.measured(session, result, step=7, learning_rate=1e-4, seconds=0.7)
                )

        path_seconds = statistics.median(seconds_of(path) for _ in range(given.calls))
        flow_seconds = time_flow(session, log)
    return facts_of(given, statistics.median(steps), path_seconds, flow_seconds)


def facts_of(
    given: argparse.Namespace, step_seconds: float, path_seconds: float, flow_seconds: float
) -> dict[str, Any]:
    """Return the measurements and what they were made on."""
    metrics_fraction = path_seconds / step_seconds
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": given.model.name,
        "num_threads": given.threads,
        "load_average": os.getloadavg(),
        "step_seconds": step_seconds,
        "path_seconds": path_seconds,
        "flow_seconds": flow_seconds,
        "metrics_fraction": metrics_fraction,
        "with_flow_fraction": metrics_fraction + flow_seconds / FLOW_EVERY / step_seconds,
    }


def time_flow(session: Any, log: Any) -> float:
    """Time looking at the gradients and reporting them, on gradients of a step's shapes."""
    import torch

    for parameter in session.parameters:
        parameter.grad = torch.randn_like(parameter)

    def flow() -> None:
        inspect = session.flow.inspection(FLOW_EVERY)
        assert inspect is not None
        inspect()
        session.flow.report(log, step=FLOW_EVERY, learning_rate=1e-4, num_updates=FLOW_EVERY)

    return statistics.median(seconds_of(flow) for _ in range(20))


def seconds_of(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=ROOT / "examples" / "data" / "lighthouse.jsonl"
    )
    parser.add_argument(
        "--model", type=Path, default=ROOT / ".cache" / "models" / "smollm2-135m-instruct"
    )
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--calls", type=int, default=5000, help="calls of the metric path")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "bench" / "results" / "metrics_cost.json"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
