"""What answering costs: first token of a warm host, tokens per second alone and with others.

Tokens per second are measured against transformers' own `generate` on the same loaded model, in
one process, turn and turn about, greedily, so that both make the same tokens; what counts is the
median of the rounds. The first token is that of a host process, over its socket.

    python bench/inference.py
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MOST_FIRST_SECONDS = 1.0
LEAST_SHARE_OF_GENERATE = 0.9
PROMPTS = (
    "Write a story about a lighthouse keeper who finds a message in a bottle.",
    "Explain how a bicycle stays upright, step by step.",
    "Describe a day in the life of a baker in a small town.",
    "Give advice to somebody who moves to another country.",
    "Tell the history of the printing press.",
    "Write a letter to a friend about a walk in the mountains.",
    "Explain what a river delta is and how it forms.",
    "Describe how to plant a vegetable garden.",
)


def main() -> None:
    given = parse_arguments()
    first = first_token_seconds(given)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": given.model.name,
        "num_threads": given.threads,
        "num_tokens": given.tokens,
        "rounds": given.rounds,
        "load_average": os.getloadavg(),
        "first_token_seconds": statistics.median(first),
        "first_token_seconds_worst": max(first),
        **measure(given),
    }
    for name, value in result.items():
        print(f"{name:34}{value:12.3f}" if isinstance(value, float) else f"{name:34} {value}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    if problems := missed(result):
        raise SystemExit("; ".join(problems))


def missed(result: dict[str, Any]) -> list[str]:
    """Say which of the promises do not hold."""
    problems: list[str] = []
    if result["first_token_seconds"] > MOST_FIRST_SECONDS:
        problems.append("the first token takes longer than a second")
    for kind in ("base", "adapter"):
        if result[f"{kind}_share_of_generate"] < LEAST_SHARE_OF_GENERATE:
            problems.append(f"{kind}: slower than generate by more than a tenth")
    if not result["one_by_one"] < result["together_4"] < result["together_8"]:
        problems.append("answering together is not faster than one by one")
    return problems


def first_token_seconds(given: argparse.Namespace) -> list[float]:
    """Time from a request to its first text, for each prompt, with a host that is warm."""
    from app.domain.inference import HostKey, Piece
    from worker.host_messages import FROM_HOST, HOST_FILE, Ask, HostFile, Ready, Reports, line
    from worker.launcher import FreshLauncher

    key = HostKey(model_folder=given.model)
    told = HostFile(key=key, device="cpu", num_threads=given.threads, most_adapters=1, niceness=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / HOST_FILE).write_text(told.model_dump_json())
        launched = FreshLauncher().launch("host", folder, folder / "log")
        seconds: list[float] = []
        with socket.socket(fileno=launched.control_fd) as channel, channel.makefile("rb") as lines:
            assert isinstance(FROM_HOST.validate_json(next(lines)), Ready), "the host did not load"
            for request in requests_of(given, num_tokens=1):
                began = time.perf_counter()
                channel.sendall(line(Ask(request=request)))
                is_there = False
                while not is_there:
                    reports = FROM_HOST.validate_json(next(lines))
                    assert isinstance(reports, Reports)
                    is_there = any(isinstance(e, Piece) for e in reports.events[request.id])
                seconds.append(time.perf_counter() - began)
            launched.kill()
    return seconds


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Return tokens per second of every way to answer."""
    from worker import trainer

    trainer.preload()
    import torch

    from app.domain.inference import HostKey
    from worker.training.inference.engine import Engine

    torch.set_num_threads(given.threads)
    counted = Counter()
    engine = Engine(
        HostKey(model_folder=given.model),
        device=torch.device("cpu"),
        most_adapters=1,
        emit=counted.take,
    )
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        adapter = make_adapter(given, Path(folder))
        for kind, asked in (("base", None), ("adapter", adapter)):
            requests = requests_of(given, num_tokens=given.tokens, adapter=asked)
            rounds = alone(given, engine, counted, requests[: given.prompts])
            ours, theirs = (statistics.median(each) for each in zip(*rounds, strict=True))
            result[f"{kind}_alone"] = ours
            result[f"{kind}_generate"] = theirs
            result[f"{kind}_share_of_generate"] = statistics.median(a / b for a, b in rounds)
    return {**result, **together(given, engine, counted)}


def alone(
    given: argparse.Namespace, engine: Any, counted: "Counter", requests: Sequence[Any]
) -> list[tuple[float, float]]:
    """Return tokens per second of the engine and of generate, round by round."""
    run(engine, requests[:1])
    rounds: list[tuple[float, float]] = []
    for number in range(given.rounds):
        ways: list[Callable[[], float]] = [
            lambda: sum(rate_seconds(engine, [each]) for each in requests),
            lambda: sum(generate_seconds(engine, each) for each in requests),
        ]
        counted.num_tokens = 0
        seconds = [0.0, 0.0]
        for way in (0, 1) if number % 2 else (1, 0):
            seconds[way] = ways[way]()
        rounds.append((counted.num_tokens / seconds[0], counted.num_tokens / seconds[1]))
    return rounds


def together(given: argparse.Namespace, engine: Any, counted: "Counter") -> dict[str, float]:
    """Return tokens per second of all prompts one by one, and several at a time."""
    requests = requests_of(given, num_tokens=given.tokens)
    rates: dict[str, list[float]] = {}
    for _ in range(given.rounds_together):
        for name, size in (("one_by_one", 1), ("together_4", 4), ("together_8", 8)):
            counted.num_tokens = 0
            groups = [requests[n : n + size] for n in range(0, len(requests), size)]
            seconds = sum(rate_seconds(engine, group) for group in groups)
            rates.setdefault(name, []).append(counted.num_tokens / seconds)
    return {name: statistics.median(each) for name, each in rates.items()}


class Counter:
    """Counts the tokens of finished answers."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def take(self, _: str, events: Sequence[Any]) -> None:
        self.num_tokens += sum(e.num_tokens for e in events if e.kind == "finished")
        assert not any(each.kind == "failed" for each in events), events


def rate_seconds(engine: Any, requests: Sequence[Any]) -> float:
    began = time.perf_counter()
    run(engine, requests)
    return time.perf_counter() - began


def run(engine: Any, requests: Sequence[Any]) -> None:
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        engine.step()


def generate_seconds(engine: Any, request: Any) -> float:
    """Time transformers' generate on the model that the engine has loaded."""
    import torch

    from worker.training.inference import prompts

    engine.shelf.use(request.adapter)
    began = time.perf_counter()
    encoded = prompts.encode(request.prompt, engine.tokenizer, frozenset())
    output = engine.base.generate(
        input_ids=torch.tensor([encoded.ids]),
        attention_mask=torch.ones(1, len(encoded.ids), dtype=torch.long),
        max_new_tokens=request.sampling.max_tokens,
        do_sample=False,
        pad_token_id=engine.tokenizer.pad_token_id or engine.tokenizer.eos_token_id,
    )
    engine.tokenizer.decode(output[0, len(encoded.ids) :])
    return time.perf_counter() - began


def requests_of(given: argparse.Namespace, *, num_tokens: int, adapter: Any = None) -> list[Any]:
    from app.domain.inference import ChatPrompt, HostKey, InferenceRequest, Sampling

    return [
        InferenceRequest(
            id=f"inf-{number}",
            host=HostKey(model_folder=given.model),
            adapter=adapter,
            prompt=ChatPrompt(messages=({"role": "user", "content": prompt},)),
            sampling=Sampling(temperature=0, max_tokens=num_tokens),
        )
        for number, prompt in enumerate(PROMPTS)
    ]


def make_adapter(given: argparse.Namespace, folder: Path) -> Any:
    """Write an adapter on all linear layers; what it says does not matter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from app.domain.inference import Adapter
    from worker.training.adapters import without_peft_warnings

    base: Any = AutoModelForCausalLM.from_pretrained(given.model)
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    with without_peft_warnings():
        get_peft_model(base, config).save_pretrained(folder)
    return Adapter(name="bench", folder=folder)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", type=Path, default=ROOT / ".cache" / "models" / "smollm2-135m-instruct"
    )
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of a round alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rounds-together", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "inference.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
