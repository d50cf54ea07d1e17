"""A GGUF export in llama.cpp: does it say what the live adapter says?

Trains a short LoRA on SmolLM2 through the service, exports it as GGUF, and lets llama.cpp (the
binding `xllamacpp`, from a wheel, in an environment of its own under `.cache/bench`) continue the
prompts of the proof: as token ids, and as text, so that its tokenizer is compared too. Prints a
table and writes bench/results/gguf.json.

    python bench/gguf.py
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from bench.startup import Service, upload, wait_until  # noqa: E402

_MODEL = _ROOT / ".cache" / "models" / "smollm2-135m-instruct"
_ENVIRONMENT = _ROOT / ".cache" / "bench" / "llamacpp"
_PEER = _ROOT / "bench" / "peers" / "llamacpp.py"
_PACKAGE = "xllamacpp==2026.10.11549"
_NUM_TOKENS = 24
_DTYPES = ("f32", "f16", "bf16", "q8_0")
_LIBRARIES = ("torch", "transformers", "peft", "gguf")


def ensure_environment() -> Path:
    """Return the Python that has llama.cpp, building its environment where it is missing."""
    python = _ENVIRONMENT / "bin" / "python"
    mark = _ENVIRONMENT / ".installed"
    if not (mark.is_file() and mark.read_text() == _PACKAGE):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(_ENVIRONMENT)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", _PACKAGE], check=True)
        mark.write_text(_PACKAGE)
    return python


def train(service: Service, model: str) -> str:
    """Train for some steps and return the job."""
    body = {
        "base_model": model,
        "dataset": {"id": upload(service), "max_length": 256},
        "lora": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "training": {"max_steps": 10, "learning_rate": 1e-3, "per_device_train_batch_size": 4},
    }
    answer = service.http.post("/jobs", json=body)
    answer.raise_for_status()
    job_id = answer.json()["id"]
    wait_until(lambda: service.http.get(f"/jobs/{job_id}").json()["state"] == "succeeded")
    return job_id


def export(service: Service, job_id: str, dtype: str) -> dict[str, Any]:
    """Export as GGUF and return what the service says of it."""
    body = {"format": "gguf", "dtype": dtype}
    answer = service.http.post(f"/jobs/{job_id}/exports", json=body)
    answer.raise_for_status()
    path = f"/jobs/{job_id}/exports/{answer.json()['id']}"

    def has_ended() -> bool:
        return service.http.get(path).json()["state"] not in ("queued", "running")

    wait_until(has_ended, seconds=600)
    return service.http.get(path).json()


def live_answers(
    model: Path, adapter: Path
) -> tuple[list[str], list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return prompts as text and as ids, and the live adapter's greedy answers to them."""
    from worker.trainer import preload

    preload()
    import torch

    from worker.training import model as loading
    from worker.training.export import live, probe
    from worker.training.templates import Template

    tokenizer = loading.load_tokenizer(model)
    base = loading.load_plain(model, dtype=torch.float32, device=torch.device("cpu"))
    adapted = live.attach(base, adapter)
    texts = probe.renderings(Template(tokenizer))[: len(probe.PROMPTS)]
    prompts = probe.prompt_tokens(tokenizer, texts)
    tracks = probe.answer(adapted, prompts, ends=probe.end_tokens(tokenizer, adapted))
    answers = [track.ids[track.num_prompt_tokens :] for track in tracks]
    return [text or "" for text in texts], prompts, answers


def ask_llamacpp(python: Path, gguf: Path, prompts: Sequence[Any]) -> list[dict[str, Any]]:
    asked = {
        "gguf": str(gguf),
        "prompts": list(prompts),
        "num_tokens": _NUM_TOKENS,
        "num_threads": os.cpu_count() or 1,
    }
    done = subprocess.run(
        [str(python), str(_PEER)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"llama.cpp failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["answers"]


def compare(
    said: Sequence[dict[str, Any]], expected: Sequence[tuple[int, ...]]
) -> dict[str, float | int]:
    """Count answers that are the same, and tokens up to the first that differs."""
    same = tokens = before = 0
    for theirs, ours in zip(said, expected, strict=True):
        pairs = list(zip(theirs["tokens"], ours, strict=False))
        agreed = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        same += theirs["tokens"][: len(ours)] == list(ours)
        tokens += len(ours)
        before += agreed
    return {
        "answers": len(expected),
        "identical_answers": same,
        "tokens": tokens,
        "tokens_before_first_difference": before,
    }


def run(model: Path) -> dict[str, Any]:
    python = ensure_environment()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="lorad-bench-") as folder:
        home = Path(folder)
        service = Service(home, model)
        service.start()
        try:
            job_id = train(service, model.name)
            (adapter,) = home.glob(f"jobs/{job_id}/attempts/*/final")
            texts, prompts, expected = live_answers(model, adapter)
            for dtype in _DTYPES:
                made = export(service, job_id, dtype)
                if made["state"] != "succeeded":
                    raise SystemExit(f"the export failed: {made['error']}")
                gguf = home / "jobs" / job_id / "exports" / made["id"] / "model.gguf"
                by_ids = ask_llamacpp(python, gguf, prompts)
                by_text = ask_llamacpp(python, gguf, texts)
                results[dtype] = {
                    "proof": made["parity"],
                    "bytes": made["bytes"],
                    "by_token_ids": compare(by_ids, expected),
                    "by_text": compare(by_text, expected),
                    "same_number_of_prompt_tokens": [e["num_prompt_tokens"] for e in by_text]
                    == [len(each) for each in prompts],
                }
        finally:
            service.stop()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare GGUF exports with the live adapter.")
    parser.add_argument("--model", type=Path, default=_MODEL)
    parser.add_argument("--out", type=Path, default=_ROOT / "bench" / "results" / "gguf.json")
    arguments = parser.parse_args()

    results = run(arguments.model)

    print(f"{'dtype':8}{'same by ids':>14}{'same by text':>14}{'KL (nats)':>12}{'MB':>8}")
    for dtype, found in results.items():
        same = [
            f"{found[way]['identical_answers']}/{found[way]['answers']}"
            for way in ("by_token_ids", "by_text")
        ]
        divergence = found["proof"]["mean_kl"]
        size = found["bytes"] / 1e6
        print(f"{dtype:8}{same[0]:>14}{same[1]:>14}{divergence:12.1e}{size:8.0f}")
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in _LIBRARIES} | {"binding": _PACKAGE},
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
