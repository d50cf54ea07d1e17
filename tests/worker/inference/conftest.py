"""Fixtures: a small model with something to say, adapters for it, and an engine."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.inference import (
    Adapter,
    ChatPrompt,
    Event,
    Failed,
    Finished,
    HostKey,
    InferenceRequest,
    Piece,
    Sampling,
    TextPrompt,
)
from worker import trainer

# Before any test module imports peft by itself, which would pull bitsandbytes in.
trainer.preload()

SHORT = "What is the capital of France?"
LONG = "Tell me everything about the sea, its fish, its ships and the people who live from it."


def ask(
    request_id: str,
    prompt: str | Sequence[dict[str, Any]] = SHORT,
    *,
    adapter: Adapter | None = None,
    is_text: bool = False,
    key: HostKey | None = None,
    **sampling: Any,
) -> InferenceRequest:
    """A request: greedy, 12 tokens, unless `sampling` says otherwise."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return InferenceRequest(
        id=request_id,
        host=key or HostKey(model_folder=Path("unused")),
        adapter=adapter,
        prompt=TextPrompt(text=str(prompt)) if is_text else ChatPrompt(messages=tuple(turns)),
        sampling=Sampling(**{"temperature": 0, "max_tokens": 12, **sampling}),
    )


@dataclass
class Answers:
    """Everything that an engine or a host told, by request."""

    events: dict[str, list[Event]] = field(default_factory=dict[str, list[Event]])
    order: list[str] = field(default_factory=list[str])

    def take(self, request_id: str, events: Sequence[Event]) -> None:
        self.events.setdefault(request_id, []).extend(events)
        self.order.append(request_id)

    def pieces(self, request_id: str, index: int = 0) -> list[Piece]:
        events = self.events[request_id]
        return [each for each in events if isinstance(each, Piece) and each.index == index]

    def text(self, request_id: str, index: int = 0) -> str:
        return "".join(piece.text for piece in self.pieces(request_id, index))

    def finished(self, request_id: str, index: int = 0) -> Finished:
        events = self.events[request_id]
        (found,) = [e for e in events if isinstance(e, Finished) and e.index == index]
        return found

    def failed(self, request_id: str) -> Failed:
        last = self.events[request_id][-1]
        assert isinstance(last, Failed), last
        return last


@pytest.fixture(scope="session")
def talker(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with biases whose weights are large enough to say different things."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "talker"
    shutil.copytree(tiny_llama, folder)
    config = LlamaConfig.from_pretrained(tiny_llama)
    config.attention_bias = True
    config.initializer_range = 0.3
    config.tie_word_embeddings = False
    config.max_position_embeddings = 512
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_adapter(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Adapter]:
    """Return a function that makes an adapter with random weights, as peft saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    from worker.training.adapters import without_peft_warnings

    def make(name: str, *, seed: int = 0, **options: Any) -> Adapter:
        folder = tmp_path_factory.mktemp("adapters") / name
        torch.manual_seed(seed)
        base = LlamaForCausalLM.from_pretrained(talker)
        given = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **options}
        with without_peft_warnings():
            model: Any = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **given))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(folder)
        return Adapter(name=name, folder=folder)

    return make


def adapted(talker: Path, adapter: Adapter | None) -> Any:
    """Load the model with an adapter as any user of peft does."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    from worker.training.adapters import without_peft_warnings

    base = LlamaForCausalLM.from_pretrained(talker).eval()
    if adapter is None:
        return base
    with without_peft_warnings():
        return PeftModel.from_pretrained(base, adapter.folder).eval()


@pytest.fixture(scope="session")
def red(make_adapter: Callable[..., Adapter]) -> Adapter:
    return make_adapter("red", seed=1)


@pytest.fixture(scope="session")
def blue(make_adapter: Callable[..., Adapter]) -> Adapter:
    return make_adapter("blue", seed=2, target_modules="all-linear", use_rslora=True)


def damaged(adapter: Adapter, folder: Path) -> Adapter:
    """Copy an adapter and take one of its matrices away."""
    shutil.copytree(adapter.folder, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)
    return Adapter(name="damaged", folder=folder)


class Bench:
    """An engine and what it told."""

    def __init__(self, folder: Path, *, most_adapters: int = 4) -> None:
        from worker.training.inference.engine import Engine

        self.answers = Answers()
        self.engine = Engine(
            HostKey(model_folder=folder),
            device=torch.device("cpu"),
            most_adapters=most_adapters,
            emit=self.answers.take,
        )

    def run(self, *requests: Any, steps_between: int = 0) -> Answers:
        for request in requests:
            self.engine.submit(request)
            for _ in range(steps_between):
                self.engine.step()
        while not self.engine.is_idle:
            self.engine.step()
        return self.answers


@pytest.fixture(scope="module")
def shared(talker: Path) -> Bench:
    return Bench(talker)


@pytest.fixture
def bench(shared: Bench) -> Bench:
    """An engine that is idle, with nothing told yet."""
    shared.answers.events.clear()
    shared.answers.order.clear()
    return shared
