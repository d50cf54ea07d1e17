"""Does training teach anything? Loss on held-out rows before and after 100 steps, LoRA and QLoRA.

Everything goes through the HTTP API of a `lorad up` of its own, on the real SmolLM2-135M-Instruct:
rank 16 on all linear layers. Asserted at the end:

- the loss on fixed held-out rows falls by at least 20 %, and QLoRA ends within 0.1 nats of LoRA;
- on the example data the training loss falls by at least 30 %, first ten steps against last ten;
- the quantized linear layers take less than 0.30 of the bytes they would take in float16.

Prints a table and writes bench/results/convergence.json. Takes half an hour on two cores.

    python bench/convergence.py --data gsm8k/train-1000.jsonl --eval gsm8k/eval-200.jsonl
"""

import argparse
import json
import platform
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from bench.startup import Service, wait_until  # noqa: E402

_MODEL = _ROOT / ".cache" / "models" / "smollm2-135m-instruct"
_EXAMPLES = _ROOT / "examples" / "data" / "lighthouse.jsonl"
_RESULTS = _ROOT / "bench" / "results" / "convergence.json"
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
_SECONDS = 3600.0
_ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {"adapter": "qlora", "training": {"optim": "adamw_8bit"}},
}


def main() -> None:
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="lorad-bench-") as home:
        service = Service(Path(home), given.model)
        service.start()
        try:
            found = _measure(service, given)
        finally:
            service.stop()
    _print(found)
    _RESULTS.write_text(json.dumps({**_facts(given), **found}, indent=2) + "\n")
    if problems := _problems(found):
        raise SystemExit("\n".join(problems))


def _measure(service: Service, given: argparse.Namespace) -> dict[str, Any]:
    train = _upload(service, given.data.name, given.data.read_bytes())
    lines = given.eval.read_bytes().splitlines(keepends=True)[: given.eval_rows]
    held_out = _upload(service, given.eval.name, b"".join(lines))
    examples = _upload(service, _EXAMPLES.name, _EXAMPLES.read_bytes())
    found: dict[str, Any] = {}
    for name, changes in _ADAPTERS.items():
        spec = _spec(given, {"id": train, "eval_id": held_out, "max_length": 512}, changes)
        spec["training"]["eval_on_start"] = True
        found[name] = _run(service, spec)
    found["examples"] = _run(service, _spec(given, {"id": examples, "max_length": 256}, {}))
    return found


def _spec(
    given: argparse.Namespace, dataset: dict[str, Any], changes: dict[str, Any]
) -> dict[str, Any]:
    training = {
        "max_steps": given.steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-4,
        **changes.get("training", {}),
    }
    return {
        "base_model": given.model.name,
        "dataset": dataset,
        **changes,
        "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "training": training,
    }


def _run(service: Service, spec: dict[str, Any]) -> dict[str, Any]:
    """Run a job to its end and return what was measured of it."""
    job = service.http.post("/jobs", json=spec).raise_for_status().json()
    path = f"/jobs/{job['id']}"
    wait_until(
        lambda: service.http.get(path).json()["state"] in ("succeeded", "failed"), seconds=_SECONDS
    )
    ended = service.http.get(path).json()
    if ended["state"] == "failed":
        raise SystemExit(f"{job['id']} failed: {ended['error']}")
    losses = [each["loss"] for each in _list(service, f"{path}/metrics?limit=10000")]
    evaluations = [each["eval_loss"] for each in _list(service, f"{path}/evaluations")]
    ready = _ready(service, job["id"])
    return {
        "first_ten": sum(losses[:10]) / 10,
        "last_ten": sum(losses[-10:]) / 10,
        "eval_losses": evaluations,
        "num_quantized_parameters": ready["num_quantized_parameters"],
        "quantized_bytes": ready["quantized_bytes"],
        "num_parameters": ready["num_parameters"],
        "certificate": service.http.get(f"{path}/certificate").json()["status"],
        "step_seconds": _median_step(service, path),
    }


def _median_step(service: Service, path: str) -> float:
    seconds = sorted(each["step_seconds"] for each in _list(service, f"{path}/metrics?limit=10000"))
    return seconds[len(seconds) // 2]


def _ready(service: Service, job_id: str) -> dict[str, Any]:
    """Return what the trainer said when it was ready, from the stream's replay."""
    kind = ""
    with service.http.stream("GET", f"/jobs/{job_id}/stream") as stream:
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            kind = value if name == "event" else kind
            if name == "data" and kind == "ready":
                return json.loads(value)
    raise SystemExit(f"the stream of {job_id} has no ready event")


def _list(service: Service, path: str) -> list[dict[str, Any]]:
    return service.http.get(path).raise_for_status().json()["data"]


def _upload(service: Service, name: str, content: bytes) -> str:
    answer = service.http.post("/datasets", files={"file": (name, content)})
    return answer.raise_for_status().json()["id"]


def _problems(found: dict[str, Any]) -> list[str]:
    before, after = found["lora"]["eval_losses"][0], found["lora"]["eval_losses"][-1]
    quantized, examples = found["qlora"], found["examples"]
    fraction = quantized["quantized_bytes"] / (2 * quantized["num_quantized_parameters"])
    checks = {
        f"LoRA: eval loss {before:.4f} -> {after:.4f} falls less than 20 %": after > 0.8 * before,
        f"QLoRA ends {quantized['eval_losses'][-1] - after:+.4f} nats from LoRA": abs(
            quantized["eval_losses"][-1] - after
        )
        > 0.1,
        "the training loss on the examples falls less than 30 %": examples["last_ten"]
        > 0.7 * examples["first_ten"],
        f"quantized layers take {fraction:.3f} of their float16 bytes": fraction >= 0.30,
    }
    return [what for what, is_wrong in checks.items() if is_wrong]


def _print(found: dict[str, Any]) -> None:
    for name, run in found.items():
        evaluations = " -> ".join(f"{loss:.4f}" for loss in run["eval_losses"]) or "-"
        print(
            f"{name:9} train {run['first_ten']:.4f} -> {run['last_ten']:.4f}  eval {evaluations}"
            f"  {run['step_seconds']:.2f} s a step  certificate {run['certificate']}"
        )
    quantized = found["qlora"]
    fraction = quantized["quantized_bytes"] / (2 * quantized["num_quantized_parameters"])
    print(f"quantized linear layers: {fraction:.3f} of their float16 bytes")


def _facts(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "steps": given.steps,
        "eval_rows": given.eval_rows,
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Rows to train on.")
    parser.add_argument("--eval", type=Path, required=True, help="Rows to evaluate on.")
    parser.add_argument("--eval-rows", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--model", type=Path, default=_MODEL)
    return parser.parse_args()


if __name__ == "__main__":
    main()
