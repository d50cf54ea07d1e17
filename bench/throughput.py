"""Seconds per step and supervised tokens/s: our step against a plain transformers + PEFT loop.

Both sides train the same rows in the same order from the same initial adapter:
SmolLM2-135M-Instruct, float32, rank 8 on q_proj and v_proj. The plain loop pads its batches,
computes all logits and takes transformers' own loss. Each side runs in processes that stay alive,
once with and once without the allocator settings of our launcher, and all of them take turns step
by step. Medians are compared.

    python bench/throughput.py --data rows.jsonl --steps 10
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}
# Both sides wait for their threads as a trainer does, so that a busy neighbour hurts both alike.
SPINNING = {"GOMP_SPINCOUNT": "1000"}
SIDES = ("ours", "plain")
SEED = 42
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Case:
    """What every process of one benchmark shares."""

    model: str
    data: str
    batch_size: int
    num_threads: int
    total_steps: int


@dataclass(frozen=True)
class Measured:
    """One step as its process saw it."""

    seconds: float
    cpu_seconds: float
    loss: float
    grad_norm: float
    num_tokens: int
    num_targets: int
    peak_rss_bytes: int


class Side:
    """A process that trains one step whenever it is told to."""

    def __init__(self, name: str, case: Case, *, with_allocator: bool) -> None:
        self.name, self.with_allocator = name, with_allocator
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--side", name, "--case", json.dumps(asdict(case))],
            env={**environment, **SPINNING, **(ALLOCATOR if with_allocator else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.steps: list[Measured] = []

    def take(self, step: int, *, measured: bool) -> Measured:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{step}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; see its error above")
        result = Measured(**json.loads(line))
        if measured:
            self.steps.append(result)
        return result

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def summary(self) -> dict[str, Any]:
        seconds = [step.seconds for step in self.steps]
        targets = [step.num_targets / step.seconds for step in self.steps]
        return {
            "side": self.name,
            "allocator_settings": self.with_allocator,
            "median_seconds": statistics.median(seconds),
            "min_seconds": min(seconds),
            "max_seconds": max(seconds),
            "median_cpu_seconds": statistics.median(step.cpu_seconds for step in self.steps),
            "supervised_tokens_per_second": statistics.median(targets),
            "peak_rss_bytes": max(step.peak_rss_bytes for step in self.steps),
            "steps": [asdict(step) for step in self.steps],
        }


def main() -> None:
    given = parse_arguments()
    if given.side:
        serve(given.side, Case(**json.loads(given.case)))
        return
    data = collect_rows(given.data, ROOT / ".cache" / "bench-rows.jsonl")
    case = Case(
        model=str(given.model),
        data=str(data),
        batch_size=given.batch_size,
        num_threads=given.threads,
        total_steps=given.steps + given.warmup,
    )
    load_before = os.getloadavg()
    sides = compare(case, warmup=given.warmup)
    report(sides, case, load_before, given)


def compare(case: Case, *, warmup: int) -> list[Side]:
    """Let all processes take turns, step by step, and check that they compute the same."""
    sides = [
        Side(name, case, with_allocator=allocator) for allocator in (True, False) for name in SIDES
    ]
    for step in range(1, case.total_steps + 1):
        results = [side.take(step, measured=step > warmup) for side in sides]
        worst = max(abs(r.loss / results[0].loss - 1) for r in results)
        times = "  ".join(f"{r.seconds:6.2f}" for r in results)
        print(f"step {step:3d}  seconds {times}   losses differ by {worst:.1e}", flush=True)
        if worst > 1e-4:
            raise SystemExit("the sides do not compute the same loss: the comparison is void")
    for side in sides:
        side.close()
    return sides


def report(
    sides: Sequence[Side],
    case: Case,
    load_before: tuple[float, float, float],
    given: argparse.Namespace,
) -> None:
    summaries = [side.summary() for side in sides]
    ratios = ratios_of(summaries, "median_seconds")
    cpu_ratios = ratios_of(summaries, "median_cpu_seconds")
    print(
        f"\n{'':8}{'allocator':>10}{'s/step':>9}{'cpu s':>8}{'sup. tok/s':>12}{'peak RSS GB':>13}"
    )
    for s in summaries:
        print(
            f"{s['side']:8}{'yes' if s['allocator_settings'] else 'no':>10}"
            f"{s['median_seconds']:9.2f}{s['median_cpu_seconds']:8.2f}"
            f"{s['supervised_tokens_per_second']:12.1f}"
            f"{s['peak_rss_bytes'] / 1e9:13.2f}"
        )
    for name, ratio in ratios.items():
        print(f"faster by {ratio:.2f}x ({cpu_ratios[name]:.2f}x in CPU time), {name}")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "num_cores": os.cpu_count(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "versions": versions(),
        "case": {**asdict(case), "model": Path(case.model).name, "data": data_names(given.data)},
        "ratios": ratios,
        "cpu_time_ratios": cpu_ratios,
        "sides": summaries,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {given.out}")


def ratios_of(summaries: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return how many times longer the plain loop takes, for each pair of settings."""
    value = {(s["side"], s["allocator_settings"]): s[key] for s in summaries}
    return {
        "allocator settings for both": value["plain", True] / value["ours", True],
        "ours with, theirs without": value["plain", False] / value["ours", True],
        "for neither": value["plain", False] / value["ours", False],
    }


def serve(name: str, case: Case) -> None:
    """Answer each step number on standard input with what the step measured."""
    import resource

    take = {"ours": our_side, "plain": plain_side}[name](case)
    for line in sys.stdin:
        began, cpu_began = time.perf_counter(), time.process_time()
        loss, norm, num_tokens, num_targets = take(int(line))
        measured = Measured(
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu_began,
            loss=loss,
            grad_norm=norm,
            num_tokens=num_tokens,
            num_targets=num_targets,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        print(json.dumps(asdict(measured)), flush=True)


Take = Callable[[int], tuple[float, float, int, int]]


def our_side(case: Case) -> Take:
    """Build the product's own step, as the trainer runs it."""
    rows, sampler = load_rows(case)

    import torch
    from torch.utils import deterministic

    from app.domain.options import LoraSpec, TrainingSpec
    from worker.training import adapters, loss, model, optim, products
    from worker.training.batch import lay_end_to_end
    from worker.training.step import train_step

    torch.set_num_threads(case.num_threads)
    torch.use_deterministic_algorithms(mode=True)
    deterministic.fill_uninitialized_memory = False
    device = torch.device("cpu")
    base = model.load_model(Path(case.model), dtype=torch.float32, device=device)
    spec = LoraSpec(r=8, lora_alpha=16, target_modules="standard")
    adapted = adapters.attach(base, spec, seed=SEED, base_model="bench")
    products.speed_up(adapted.base)
    parameters = list(adapted.parameters.values())
    optimizer = optim.make_optimizer(parameters, weight_decay=0.0)
    schedule = optim.make_schedule(
        TrainingSpec(learning_rate=LEARNING_RATE), total_steps=case.total_steps
    )
    loss_sum = loss.make_loss_sum(adapted.base)

    def take(step: int) -> tuple[float, float, int, int]:
        batches = [
            lay_end_to_end([rows[row] for row in micro_batch], device=device)
            for micro_batch in sampler.micro_batches_of(step)
        ]
        optim.set_learning_rate(optimizer, schedule.learning_rate(step))
        result = train_step(loss_sum, parameters, optimizer, batches, max_grad_norm=1.0)
        return result.loss, result.grad_norm, result.num_tokens, result.num_targets

    return take


def plain_side(case: Case) -> Take:
    """Build the loop that a user of transformers and PEFT writes: padded, all logits."""
    rows, sampler = load_rows(case)

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, get_scheduler

    torch.set_num_threads(case.num_threads)
    base = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
    torch.manual_seed(SEED)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
    )
    model = get_peft_model(base, config)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    num_warmup = -(-case.total_steps * 3 // 100)
    scheduler = get_scheduler(
        "cosine", optimizer, num_warmup_steps=num_warmup, num_training_steps=case.total_steps
    )

    def take(step: int) -> tuple[float, float, int, int]:
        ids, mask, labels = padded([rows[row] for row in sampler.rows_of(step)])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        num_targets = int((labels[:, 1:] != -100).sum())
        return loss.item(), norm.item(), int(mask.sum()), num_targets

    return take


def padded(rows: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return token ids, attention mask and labels of rows, padded to the longest."""
    import torch

    ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        tokens = torch.from_numpy(row.ids.astype("int64"))
        ids[index, : len(tokens)], mask[index, : len(tokens)] = tokens, 1
        labels[index, : len(tokens)] = tokens.where(torch.from_numpy(row.is_target), -100)
    return ids, mask, labels


def load_rows(case: Case) -> tuple[Sequence[Any], Any]:
    """Encode the rows once, the same way for both sides, and fix their order."""
    from worker import trainer

    trainer.preload()
    from app.domain.options import DatasetSpec
    from worker.training import data, model
    from worker.training.sampler import Sampler

    path = Path(case.data)
    loaded = data.load(
        path,
        model.load_tokenizer(Path(case.model)),
        DatasetSpec(id="ds-000000000000000000000000"),
        row_format="chat",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    return loaded.rows, Sampler(
        num_rows=len(loaded.rows),
        micro_batch_size=case.batch_size,
        accumulation_steps=1,
        seed=SEED,
    )


def collect_rows(path: Path | None, joined: Path) -> Path:
    """Return the file to train on; without one, the repository's example data joined together."""
    if path is not None:
        return path
    files = sorted((ROOT / "examples" / "data").glob("*.jsonl"))
    if not files:
        raise SystemExit("examples/data has no .jsonl file; give one with --data")
    joined.parent.mkdir(parents=True, exist_ok=True)
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    return joined


def data_names(path: Path | None) -> str:
    return "examples/data" if path is None else f"{path.parent.name}/{path.name}"


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def versions() -> Mapping[str, str]:
    from importlib.metadata import version

    names = ("torch", "transformers", "peft", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="JSONL chat rows (default: examples/data)")
    parser.add_argument(
        "--model", type=Path, default=ROOT / ".cache" / "models" / "smollm2-135m-instruct"
    )
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each process")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them, not measured")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "throughput.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
