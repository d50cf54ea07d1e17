"""Kill-and-resume chains on a real small Llama with PEFT: each ends as the run nobody touched."""

import hashlib
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from app.domain.runs import EVENTS_FILE, attempt_folder, checkpoint_folder_name
from tests.chaos.harness import evidence, processes
from tests.chaos.harness.fast_model import Golden
from tests.chaos.harness.load import Accepted
from tests.chaos.harness.nemeses import Strike
from tests.chaos.harness.run import Run, Scenario
from tests.chaos.harness.stack import ROOT, Stuck
from tests.e2e.rows import ROWS
from tests.fixtures.stack import link_model

MODEL = ROOT / ".cache" / "models" / "tiny-llama"
_STEPS, _SAVE_STEPS = 12, 3
_KILLS = (2, 4)
_END_SECONDS = 180.0
Adapter = Literal["lora", "qlora"]


@dataclass
class RealWork:
    """A job on the real trainer; what it has to give is known once a job like it ran through."""

    adapter: Adapter
    seed: int
    num_steps: int = _STEPS
    golden: Golden = field(default_factory=lambda: Golden((), ""))

    def spec(self, dataset: str) -> dict[str, Any]:
        return {
            "base_model": MODEL.name,
            "adapter": self.adapter,
            "seed": self.seed,
            "dataset": {"id": dataset},
            "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj"]},
            "training": {
                "max_steps": _STEPS,
                "save_steps": _SAVE_STEPS,
                "save_total_limit": None,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-3,
            },
        }


@dataclass(frozen=True)
class _Twin:
    """The job that nobody touched."""

    golden: Golden
    optimizer_sha256: str


def chains(*, trials: int) -> Scenario:
    """Return the scenario that kills each job's trainer several times, LoRA and QLoRA in turn."""

    def scenario(run: Run) -> None:
        if not MODEL.is_dir():
            raise Stuck(f"{MODEL} is missing; the tests make it: pytest tests/e2e/test_resume.py")
        link_model(run.stack.home, MODEL)
        rows = "".join(json.dumps(row) + "\n" for row in ROWS)
        run.load.upload(rows.encode())
        twins = {adapter: _twin(run, adapter) for adapter in ("lora", "qlora")}
        done: Counter[str] = Counter()
        for number in range(trials):
            adapter: Adapter = "lora" if number % 2 == 0 else "qlora"
            _chain(run, adapter, twins[adapter])
            done[adapter] += 1
        run.figures["chains"] = dict(done)

    return scenario


def _twin(run: Run, adapter: Adapter) -> _Twin:
    """Run a job through and keep what it gave."""
    work = RealWork(adapter, seed=7)
    job = run.load.submit(work)
    state = run.load.wait_for(job, ("succeeded", "failed"), seconds=_END_SECONDS)
    if state != "succeeded":
        raise Stuck(f"the uninterrupted {adapter} run is {state}")
    answer = run.stack.http.get(f"/jobs/{job.job_id}").json()
    metrics = run.stack.http.get(f"/jobs/{job.job_id}/metrics").json()["data"]
    row = {"id": job.job_id, "final_attempt": answer["attempt"]}
    digest = evidence.adapter_sha256(run.stack.home, row)
    work.golden = Golden(tuple(each["loss"] for each in metrics), str(digest))
    return _Twin(work.golden, _optimizer_sha256(run.stack.home, job))


def _chain(run: Run, adapter: Adapter, twin: _Twin) -> None:
    job = run.load.submit(RealWork(adapter, seed=7, golden=twin.golden))
    for _ in range(run.rng.randint(*_KILLS)):
        strike = _kill_in_work(run, job)
        if strike is not None:
            run.strikes.append(strike)
    run.load.wait_for(job, ("succeeded", "failed"), seconds=_END_SECONDS)
    if _optimizer_sha256(run.stack.home, job) != twin.optimizer_sha256:
        run.extra["I8"].append(f"{job.job_id} ({adapter}): its optimizer state is another one")


def _kill_in_work(run: Run, job: Accepted) -> Strike | None:
    """Kill the trainer some time after its attempt has a checkpoint; None when it was faster."""
    before = run.load.attempts()[job.job_id]
    deadline = time.monotonic() + _END_SECONDS
    # The first attempt may be hit anywhere; later ones once they got further.
    wanted = b'"kind":"checkpoint"' if before else run.rng.choice((b'"step"', b'"ready"'))
    while time.monotonic() < deadline:
        if run.load.state(job) in ("succeeded", "failed"):
            return None
        events = _newest_events(run.stack.home, job)
        trainer = _trainer(run)
        if wanted in events and b'"finished"' not in events and trainer is not None:
            time.sleep(run.rng.uniform(0.0, 0.25))
            return _strike(run, job, trainer)
        time.sleep(0.01)
    raise Stuck(f"{job.job_id} made no progress for {_END_SECONDS:.0f} s")


def _strike(run: Run, job: Accepted, trainer: psutil.Process) -> Strike | None:
    try:
        trainer.send_signal(signal.SIGSTOP)
        processes.wait_until_stopped(trainer.pid)
        events = _newest_events(run.stack.home, job)
        is_saving = processes.has_half_written(run.stack.home, job.job_id)
        doing: processes.Doing = "start" if b'"ready"' not in events else "step"
        if b'"finished"' in events:
            doing = "idle"
        at = time.time()
        os.killpg(trainer.pid, signal.SIGKILL)
        trainer.wait(timeout=10)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
    return Strike("trainer", at, f"{trainer.pid}", "save" if is_saving else doing, (job.job_id,))


def _trainer(run: Run) -> psutil.Process | None:
    """Return the trainer of the only slot: what the fork server has forked and not reaped."""
    (worker,) = run.stack.workers
    server = processes.fork_server(run.stack.processes[worker].pid)
    if server is None:
        return None
    found = processes.children(server)
    return next((each for each in found if each.status() != psutil.STATUS_ZOMBIE), None)


def _newest_events(home: Path, job: Accepted) -> bytes:
    attempts = [int(path.name) for path in attempt_folder(home, job.job_id, 1).parent.glob("*")]
    file = attempt_folder(home, job.job_id, max(attempts, default=1)) / EVENTS_FILE
    return file.read_bytes() if file.exists() else b""


def _optimizer_sha256(home: Path, job: Accepted) -> str:
    """Hash the optimizer's state after the last step."""
    pattern = f"*/{checkpoint_folder_name(_STEPS)}/optimizer.safetensors"
    found = sorted(attempt_folder(home, job.job_id, 1).parent.glob(pattern))
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    return " and ".join(sorted(digests)) or "missing"
