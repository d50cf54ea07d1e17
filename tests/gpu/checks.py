"""What has to hold on a GPU, as functions of a device: the CPU runs them on a tiny model."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from app.domain.checkpoints import ADAPTER_FILES
from app.domain.events import GradientFlowEvent
from tests.training_runs import ROOT, Attempt, Workplace

EXAMPLE_ROWS: Sequence[dict[str, Any]] = tuple(
    json.loads(line)
    for line in (ROOT / "examples" / "data" / "lighthouse.jsonl").read_text().splitlines()
)
TARGET_SETS = {"minimal": 1, "standard": 2, "full-attention": 4, "mlp": 2}
"""Preset -> the linear layers it adapts in a decoder layer of a Llama."""
WEIGHTS = ADAPTER_FILES[1]


def train(place: Workplace, device: str, **arguments: Any) -> Attempt:
    """Train on the device and require that the run ended well."""
    groups = {"rows": EXAMPLE_ROWS, **arguments}
    groups["training"] = {"warmup_steps": 1.0, **groups["training"]}
    attempt = place.train(device=device, **groups)
    assert attempt.events[-1].kind == "finished", attempt.events[-1]
    return attempt


def losses_of(attempt: Attempt) -> list[float]:
    losses = [loss for loss in attempt.losses.values() if loss is not None]
    assert len(losses) == len(attempt.losses)
    assert all(map(math.isfinite, losses))
    return losses


def ten_steps_are_finite_and_learn(place: Workplace, device: str, *, learning_rate: float) -> None:
    # Four rows, so that every step sees all of them and losses can be compared.
    attempt = train(
        place,
        device,
        rows=EXAMPLE_ROWS[:4],
        training={"max_steps": 10, "learning_rate": learning_rate},
        lora={"r": 8, "lora_alpha": 16, "target_modules": "standard"},
    )

    losses = losses_of(attempt)
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def the_loss_falls(
    place: Workplace, device: str, *, num_steps: int, learning_rate: float, at_least: float
) -> tuple[float, float]:
    """Return the mean loss of the first and of the last ten steps."""
    attempt = train(
        place,
        device,
        training={
            "max_steps": num_steps,
            "learning_rate": learning_rate,
            "per_device_train_batch_size": 8,
        },
        lora={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    )

    losses = losses_of(attempt)
    assert len(losses) == num_steps
    return require_fall(losses, at_least)


def require_fall(losses: Sequence[float], at_least: float) -> tuple[float, float]:
    first, last = statistics.mean(losses[:10]), statistics.mean(losses[-10:])
    assert last <= (1 - at_least) * first, (first, last)
    return first, last


def gradients_flow(place: Workplace, device: str) -> None:
    attempt = train(
        place,
        device,
        training={"max_steps": 5, "learning_rate": 1e-3},
        lora={"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        monitoring={"gradient_flow_steps": 1},
    )

    flows = [e.gradient_flow for e in attempt.events if isinstance(e, GradientFlowEvent)]
    assert [flow.step for flow in flows] == [1, 2, 3, 4, 5]
    for flow in flows:
        assert flow.is_healthy, flow.step
        assert flow.frozen_with_gradient == ()
        assert all(m.grad_norm for m in flow.matrices if m.matrix == "B")
    # A warm-up step and the first real one leave every B at zero, and so every A without gradient.
    assert all(m.grad_norm and m.distance for m in flows[-1].matrices)
    assert {m.matrix for m in flows[-1].matrices} == {"A", "B"}


def checkpoints_are_written(place: Workplace, device: str) -> None:
    attempt = train(place, device, training={"max_steps": 10, "save_steps": 5})

    folders = [attempt.checkpoint(step).folder for step in (5, 10)]
    at_five, at_ten = (load_file(folder / WEIGHTS) for folder in folders)
    final = load_file(attempt.folder / "final" / WEIGHTS)
    assert at_five.keys() == at_ten.keys() == final.keys()
    assert all(not at_five[name].equal(at_ten[name]) for name in final if "lora_B" in name)
    assert all(final[name].equal(at_ten[name]) for name in final)


def a_resumed_run_goes_on_as_if_it_had_not_stopped(
    place: Workplace, device: str, *, tolerance: float
) -> None:
    """Ten steps and ten more give the losses of twenty; `tolerance` 0 asks for equal bits."""
    arguments: dict[str, Any] = {"training": {"max_steps": 20, "save_steps": 10}}
    whole = train(place, device, **arguments)

    groups = {"rows": EXAMPLE_ROWS, "training": {"warmup_steps": 1.0, **arguments["training"]}}
    stopped = place.train_until(10, "pause", device=device, **groups)
    rest = train(place, device, **arguments, resume=stopped.checkpoint(10))

    assert list(rest.losses) == list(range(11, 21))
    assert "surroundings_changed" not in rest.notices
    joined = stopped.losses | rest.losses
    assert joined.keys() == whole.losses.keys()
    for step, loss in whole.losses.items():
        other = joined[step]
        assert loss is not None
        assert other is not None
        assert abs(other - loss) <= tolerance * abs(loss), step


def every_target_set_trains(place: Workplace, device: str, *, num_layers: int) -> None:
    for preset, num_kinds in TARGET_SETS.items():
        attempt = train(
            place,
            device,
            training={"max_steps": 3, "learning_rate": 1e-3},
            lora={"r": 4, "lora_alpha": 8, "target_modules": preset},
        )

        losses_of(attempt)
        assert len(attempt.ready.target_modules) == num_layers * num_kinds, preset
        final = load_file(attempt.folder / "final" / WEIGHTS)
        assert all(final[name].any() for name in final if "lora_B" in name), preset


def memory_stays_below(
    place: Workplace,
    device: str,
    *,
    batch_size: int,
    length: int,
    limit_bytes: float,
    **groups: Any,
) -> int:
    """Train two steps on rows of `length` tokens each and return the peak in bytes."""
    text = "The keeper trims the wick, winds the clock and writes the weather down. " * length
    attempt = train(
        place,
        device,
        rows=[{"text": f"{row}. {text}"} for row in range(2 * batch_size)],
        row_format="text",
        dataset={"max_length": length},
        training={
            "max_steps": 2,
            "per_device_train_batch_size": batch_size,
            **groups.pop("training", {}),
        },
        **groups,
    )

    assert [step.metrics.num_tokens for step in attempt.steps] == [batch_size * length] * 2
    peak = max(step.metrics.peak_memory_bytes for step in attempt.steps)
    assert peak <= limit_bytes, f"{peak / 1e9:.2f} GB"
    return peak


def place_for(folder: Path, model_folder: Path) -> Workplace:
    folder.mkdir(parents=True, exist_ok=True)
    return Workplace(folder, model_folder)
