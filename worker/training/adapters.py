"""LoRA adapters: which layers get one, and attaching them."""

import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.domain.errors import NoMatchingLayers
from app.domain.options import LoraSpec
from app.domain.presets import ALL_LINEAR, PRESETS


@dataclass(frozen=True)
class Adapted:
    """A model with its adapters."""

    model: PeftModel
    target_modules: tuple[str, ...]
    """Full names of the layers that have an adapter."""
    parameters: dict[str, nn.Parameter]
    """What is trained, by name, in a fixed order."""

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, whose layers are adapted in place."""
        model = self.model.get_base_model()
        assert isinstance(model, PreTrainedModel)
        return model


def attach(model: PreTrainedModel, spec: LoraSpec, *, seed: int, base_model: str) -> Adapted:
    """Put LoRA adapters on the layers that `spec.target_modules` names.

    The initial weights depend on `seed` and the layers only; the state of torch's generator
    neither matters nor changes.

    Raises:
        NoMatchingLayers: A name, or the preset, matches no linear layer of the model.
    """
    names = resolve_layers(model, spec.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=_shortest_names(model, names),
        bias="none",
    )
    # peft makes the matrices on the CPU, whatever the device of the layer.
    with torch.random.fork_rng(devices=[]), without_peft_warnings():
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config)
    assert isinstance(peft_model, PeftModel)
    # peft notes the folder that the model came from, which means nothing on another machine.
    peft_model.peft_config["default"].base_model_name_or_path = base_model
    peft_model.train()
    trained = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    return Adapted(peft_model, tuple(names), trained)


def resolve_layers(model: PreTrainedModel, wanted: Sequence[str] | str) -> list[str]:
    """Return the full names of the linear layers that `wanted` means, in the model's order.

    Args:
        model: The base model without adapters.
        wanted: Names (or endings of dotted names), a preset, or `all-linear`.

    Raises:
        NoMatchingLayers: A name matches nothing; the message says what the model has.
    """
    layers = linear_layers(model)
    head = model.get_output_embeddings()
    if isinstance(wanted, str):
        wanted = PRESETS[wanted].target_modules
    if wanted == ALL_LINEAR:
        found = [name for name, layer in layers.items() if layer is not head]
        if not found:
            raise NoMatchingLayers(f"{type(model).__name__} has no linear layer to adapt")
        return found
    missing = [name for name in wanted if not any(_matches(layer, name) for layer in layers)]
    if missing:
        raise NoMatchingLayers(
            f"no linear layer of {type(model).__name__} is named {', '.join(missing)};"
            f" it has {', '.join(_kinds(layers))}",
            param="lora.target_modules",
        )
    return [layer for layer in layers if any(_matches(layer, name) for name in wanted)]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every linear layer by its full name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


@contextmanager
def without_peft_warnings() -> Generator[None]:
    """Hide that peft asks transformers for a flag under its old name; it concerns no user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _shortest_names(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return last parts of names (`q_proj`) if they mean exactly `layers`, else the full names."""
    short = _kinds(layers)
    meant = [
        name for name, _ in model.named_modules() if any(_matches(name, kind) for kind in short)
    ]
    return short if meant == list(layers) else list(layers)


def _kinds(layers: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in layers})


def _matches(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")
