# pyright: basic, reportMissingTypeStubs=false
"""The model of the fast trainer: a few numbers whose every bit depends on every step before."""

import hashlib
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from app.domain.checkpoints import ADAPTER_FILES, STATE_FILES

_CONFIG, _WEIGHTS = ADAPTER_FILES
_OPTIMIZER, _STATE = STATE_FILES
_SIZE = 64
_ROWS = 997
_ROWS_A_STEP = 4
_MOMENTUM = 0.9
_NOISE = 0.05


@dataclass
class FastModel:
    """Weights, momentum, two generators and three counts: all that a step reads and writes.

    Leaving any of them out of a checkpoint changes the weights of every later step.
    """

    weights: np.ndarray
    momentum: np.ndarray
    python: random.Random
    numpy: np.random.Generator
    step: int = 0
    num_tokens: int = 0
    loss: float | None = None

    @classmethod
    def fresh(cls, seed: int) -> "FastModel":
        generator = np.random.Generator(np.random.PCG64(seed))
        weights = generator.standard_normal(_SIZE).astype(np.float32)
        momentum = np.zeros(_SIZE, np.float32)
        return cls(weights, momentum, random.Random(seed), generator)

    def do_step(self) -> "StepDone":
        """Do one step of gradient descent with momentum, towards the rows that it draws."""
        rows = [self.python.randrange(_ROWS) for _ in range(_ROWS_A_STEP)]
        noise = self.numpy.standard_normal(_SIZE).astype(np.float32)
        places = np.arange(_SIZE, dtype=np.int64)
        target = np.zeros(_SIZE, np.float32)
        for row in rows:
            target += ((places * 40503 + row * 2654435) % 1000).astype(np.float32) / 1000
        # The learning rate follows the step, so that a wrong step counter shows in the weights.
        learning_rate = 0.05 / (1 + 0.01 * self.step)
        gradient = self.weights - target / _ROWS_A_STEP + np.float32(_NOISE) * noise
        self.momentum = np.float32(_MOMENTUM) * self.momentum + gradient
        self.weights = self.weights - np.float32(learning_rate) * self.momentum
        self.step += 1
        self.num_tokens += sum(rows)
        self.loss = float(np.sum(gradient * gradient))
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        return StepDone(self.loss, learning_rate, sum(rows), digest[:16])

    def adapter_contents(self) -> dict[str, bytes]:
        """Return the files of the adapter alone."""
        tensors = {"base_model.model.layer.lora_A.weight": self.weights}
        return {_CONFIG: b'{"peft_type": "LORA"}\n', _WEIGHTS: save(tensors, {"format": "pt"})}

    def contents(self) -> dict[str, bytes]:
        """Return the files of a checkpoint."""
        state = {
            "step": self.step,
            "num_tokens": self.num_tokens,
            "loss": self.loss,
            "python": self.python.getstate(),
            "numpy": self.numpy.bit_generator.state,
        }
        return {
            **self.adapter_contents(),
            _OPTIMIZER: save({"momentum": self.momentum}),
            _STATE: json.dumps(state).encode() + b"\n",
        }


@dataclass(frozen=True)
class StepDone:
    """What a step reports."""

    loss: float
    learning_rate: float
    num_tokens: int
    batch_sha: str


def load(folder: Path) -> FastModel:
    """Return the model as it was when the checkpoint in `folder` was made."""
    state: dict[str, Any] = json.loads((folder / _STATE).read_bytes())
    model = FastModel.fresh(0)
    model.weights = load_file(folder / _WEIGHTS)["base_model.model.layer.lora_A.weight"]
    model.momentum = load_file(folder / _OPTIMIZER)["momentum"]
    version, words, gauss = state["python"]
    model.python.setstate((version, tuple(words), gauss))
    model.numpy.bit_generator.state = state["numpy"]
    model.step, model.num_tokens = state["step"], state["num_tokens"]
    model.loss = state["loss"]
    return model


@dataclass(frozen=True)
class Golden:
    """What a run that nothing interrupts gives."""

    losses: tuple[float, ...]
    adapter_sha256: str


@cache
def golden(seed: int, num_steps: int) -> Golden:
    """Train without any service, in this process."""
    model = FastModel.fresh(seed)
    losses = tuple(model.do_step().loss for _ in range(num_steps))
    adapter = model.adapter_contents()[_WEIGHTS]
    return Golden(losses, hashlib.sha256(adapter).hexdigest())
