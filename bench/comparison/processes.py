"""Running one system once, and what it took: steps by its own report, memory by the kernel's."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from bench.comparison.cases import LEARNING_RATE, MAX_LENGTH, SEED, Case, Column, System

ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.05
_RUN_LIMIT_SECONDS = 1800.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Step:
    """One optimizer step as its process reported it."""

    step: int
    at: float
    """Time of its end, seconds since the epoch."""
    loss: float
    num_targets: int


@dataclass(frozen=True)
class Run:
    """One process from start to end."""

    system: str
    column: Column
    round: int
    problem: str = ""
    """Why it did not finish; empty when it did."""
    began: float = 0.0
    steps: tuple[Step, ...] = ()
    peak_rss_bytes: int = 0
    cpu: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    """CPU seconds used so far, by time: (seconds since the epoch, CPU seconds)."""

    @classmethod
    def read(cls, path: Path) -> Self:
        raw = json.loads(path.read_text())
        steps = tuple(Step(**step) for step in raw.pop("steps"))
        cpu = tuple((at, used) for at, used in raw.pop("cpu"))
        return cls(**raw, steps=steps, cpu=cpu)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def seconds_of(self, step: int) -> float:
        """Return the time from the end of the step before to the end of this one."""
        return self.steps[step - 1].at - self.steps[step - 2].at

    def cpu_seconds_between(self, first: float, last: float) -> float:
        return _at(self.cpu, last) - _at(self.cpu, first)


@dataclass(frozen=True)
class Surroundings:
    """What all runs of a table share."""

    case: Case
    folder: Path
    model: Path
    num_steps: int
    num_threads: int
    lorad_variables: Mapping[str, str]
    """What lorad's launcher gives its trainers."""


def run_system(
    system: System, column: Column, number: int, python: Path, surroundings: Surroundings
) -> Run:
    """Run one system in a process of its own and return what it took."""
    folder = surroundings.folder / "runs" / f"{system.name}-{column}-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    if system.environment:
        process = _start_peer(system, column, python, folder, surroundings)
        read_steps = _peer_steps
    else:
        process = _start_lorad(folder, surroundings)
        read_steps = _lorad_steps
    peak, cpu = _watch(process)
    steps = read_steps(folder)
    problem = ""
    if process.returncode != 0 or len(steps) < surroundings.num_steps:
        problem = f"exit {process.returncode} after {len(steps)} steps: {_last_line(folder)}"
    return Run(system.name, column, number, problem, began, steps, peak, cpu)


def _start_peer(
    system: System, column: Column, python: Path, folder: Path, surroundings: Surroundings
) -> subprocess.Popen[bytes]:
    job = {
        "model": str(surroundings.model),
        "adapter": str(surroundings.folder / "adapter"),
        "rows": str(surroundings.folder / f"{system.rows}.jsonl"),
        "steps": str(folder / "steps.jsonl"),
        "out_folder": str(folder / "out"),
        "num_steps": surroundings.num_steps,
        "batch_size": surroundings.case.batch_size,
        "learning_rate": LEARNING_RATE,
        "max_length": MAX_LENGTH,
        "seed": SEED,
        "variant": system.variant,
    }
    (folder / "job.json").write_text(json.dumps(job))
    script = ROOT / "bench" / "peers" / system.script
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [python, script, folder / "job.json"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=peer_variables(surroundings, column),
            cwd=folder,
        )


def peer_variables(surroundings: Surroundings, column: Column) -> dict[str, str]:
    """Return the environment of a peer: the user's own, and lorad's settings where they are given.

    lorad's settings are those of the allocator and of waiting threads.
    """
    ours = {
        name: value
        for name, value in surroundings.lorad_variables.items()
        if name.startswith(("MALLOC_", "GOMP_"))
    }
    left_out = {*ours, "PYTHONPATH", "VIRTUAL_ENV"}
    return {
        **{name: value for name, value in os.environ.items() if name not in left_out},
        **(ours if column == "given" else {}),
        "OMP_NUM_THREADS": str(surroundings.num_threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _start_lorad(folder: Path, surroundings: Surroundings) -> subprocess.Popen[bytes]:
    """Start the product's own trainer, as its worker does."""
    (folder / "run.json").write_text(_run_file(folder, surroundings))
    reader, writer = os.pipe()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.trainer", folder, "--control-fd", str(reader)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(surroundings.lorad_variables),
            cwd=ROOT,
            pass_fds=[reader],
        )
    os.close(reader)
    # The trainer ends with the other end of its pipe, so that one stays open, unused.
    _KEPT_OPEN.append(writer)
    return process


_KEPT_OPEN: list[int] = []


def _run_file(folder: Path, surroundings: Surroundings) -> str:
    from app.domain.runs import RunFile

    data = surroundings.folder / "lorad.jsonl"
    run = {
        "job_id": "job-000000000000000000000000",
        "attempt": 1,
        "fence": 1,
        "spec": _job_spec(surroundings),
        "model_folder": surroundings.model,
        "dataset": {
            "path": data,
            "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
            "format": "chat",
        },
        "attempt_folder": folder,
        "cache_folder": surroundings.folder / "cache",
        "device": "cpu",
        "device_index": 0,
        "lock_file": surroundings.folder / "device.lock",
        "num_threads": surroundings.num_threads,
    }
    return RunFile.model_validate(run).model_dump_json()


def _job_spec(surroundings: Surroundings) -> dict[str, Any]:
    case = surroundings.case
    targets = case.targets
    return {
        "base_model": surroundings.model.name,
        "seed": SEED,
        "lora": {
            "r": case.rank,
            "lora_alpha": case.alpha,
            "target_modules": targets if isinstance(targets, str) else list(targets),
        },
        "dataset": {"id": "ds-000000000000000000000000", "max_length": MAX_LENGTH},
        "training": {
            "max_steps": surroundings.num_steps,
            "per_device_train_batch_size": case.batch_size,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "dtype": "float32",
        },
    }


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, tuple[tuple[float, float], ...]]:
    """Wait for the end; return the highest memory use, and CPU seconds by time."""
    peak, cpu, deadline = 0, list[tuple[float, float]](), time.monotonic() + _RUN_LIMIT_SECONDS
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            stat = Path(f"/proc/{process.pid}/stat").read_text()
        except OSError:
            break
        peak = max(peak, _high_water(status))
        user, system = stat.rpartition(")")[2].split()[11:13]
        cpu.append((time.time(), (int(user) + int(system)) / _TICKS))
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(_POLL_SECONDS)
    process.wait()
    return peak, tuple(cpu)


def _high_water(status: str) -> int:
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _peer_steps(folder: Path) -> tuple[Step, ...]:
    path = folder / "steps.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return tuple(
        Step(raw["step"], raw["at"], raw["loss"], raw["num_targets"])
        for raw in map(json.loads, lines)
    )


def _lorad_steps(folder: Path) -> tuple[Step, ...]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return tuple(
        Step(
            step=event["metrics"]["step"],
            at=datetime.fromisoformat(event["at"]).timestamp(),
            loss=event["metrics"]["loss"],
            num_targets=event["metrics"]["num_target_tokens"],
        )
        for event in events
        if event["kind"] == "step"
    )


def _last_line(folder: Path) -> str:
    lines = (folder / "log").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"


def _at(samples: Sequence[tuple[float, float]], when: float) -> float:
    """Return the value at a time, between two samples in proportion."""
    before = max((s for s in samples if s[0] <= when), default=samples[0])
    after = min((s for s in samples if s[0] > when), default=samples[-1])
    if after[0] == before[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (when - before[0]) / (after[0] - before[0])
