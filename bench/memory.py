"""Memory that a plan expects against the peak that a run has, each run in a trainer of its own.

    python bench/memory.py --model MODEL_FOLDER [--quick]

Writes bench/results/memory-<date>.json.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.domain.events import MemoryEvent  # noqa: E402
from app.domain.tools import PlanRequest  # noqa: E402
from tests.training_runs import Workplace, read_events  # noqa: E402
from worker import launcher  # noqa: E402
from worker.training import planning  # noqa: E402

QV = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
ALL = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
GRID = [
    (adapter, name, lora, batch, length, limited)
    for adapter in ("lora", "qlora")
    for name, lora in (("q+v r8", QV), ("all-linear r16", ALL))
    for batch in (1, 2, 4, 8)
    for length in (128, 512)
    for limited in (False, True)
]
# A limit that nothing reaches: it changes how glibc keeps memory.
FAR_AWAY_GB = 1000
PROGRAM = """
import os, sys
from pathlib import Path
from worker import trainer
reader, writer = os.pipe()
sys.exit(trainer.main(Path(sys.argv[1]), reader))
"""


def measure(
    model: Path,
    adapter: str,
    lora: dict[str, Any],
    batch: int,
    length: int,
    *,
    limited: bool,
    num_threads: int,
) -> dict[str, int]:
    """Train three steps in a process of its own and return its last memory report."""
    with tempfile.TemporaryDirectory() as folder:
        run = Workplace(Path(folder), model).run_file(
            # A word is a token, and the rows are cut to their length.
            rows=[{"text": f"{n} " + "word " * length} for n in range(3 * batch)],
            row_format="text",
            num_threads=num_threads,
            adapter=adapter,
            lora=lora,
            dataset={"max_length": length},
            training={"per_device_train_batch_size": batch, "max_steps": 3},
            resources={"max_memory_gb": FAR_AWAY_GB} if limited else {},
        )
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(run.attempt_folder)],
            cwd=ROOT,
            env=launcher.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        expected = planning.plan(PlanRequest(run=run), Path(folder)).facts.memory
        reports = [e.memory for e in read_events(run) if isinstance(e, MemoryEvent)]
    phases = {each.phase: each.peak_bytes for each in reports[-1].phases}
    return {"expected": expected.expected_bytes, "measured": reports[-1].peak_bytes, **phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="eight cases only")
    given = parser.parse_args()
    cases = [GRID[number] for number in (0, 1, 10, 11, 26, 27, 58, 59)] if given.quick else GRID
    rows: list[dict[str, Any]] = []
    for adapter, name, lora, batch, length, limited in cases:
        found = measure(
            given.model, adapter, lora, batch, length, limited=limited, num_threads=given.threads
        )
        ratio = found["expected"] / found["measured"]
        case = {"adapter": adapter, "lora": name, "batch": batch, "length": length}
        rows.append({**case, "limited": limited, **found})
        mode = "limited" if limited else "free"
        wanted, peak = found["expected"] / 1e9, found["measured"] / 1e9
        print(
            f"{adapter:6} {name:15} {batch}x{length:4} {mode:7}  expected {wanted:6.3f} GB"
            f"  measured {peak:6.3f} GB  {100 * (ratio - 1):+6.1f} %",
            flush=True,
        )
    worst = max(abs(row["expected"] / row["measured"] - 1) for row in rows)
    print(f"worst: {100 * worst:.1f} %")
    day = datetime.now(UTC).date().isoformat()
    target = ROOT / "bench" / "results" / f"memory-{day}.json"
    target.parent.mkdir(exist_ok=True)
    about = {"machine": platform.machine(), "threads": given.threads, "worst": worst, "cases": rows}
    target.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
