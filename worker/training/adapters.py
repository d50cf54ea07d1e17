"""LoRA adapters: which layers get one, and attaching them."""

import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.domain.errors import NoMatchingLayers, UntrainableModule
from app.domain.options import LoraSpec
from app.domain.presets import ALL_LINEAR, PRESETS
from worker.training import quantize


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
        NoMatchingLayers: A name, a pattern or the preset matches nothing in the model.
        UntrainableModule: A module of `modules_to_save` cannot be trained in full.
    """
    names = resolve_layers(model, spec.target_modules)
    _require_biases(model, names, spec.bias)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=_shortest_names(model, names),
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        bias=spec.bias,
        modules_to_save=_modules_to_save(model, spec.modules_to_save, names),
        rank_pattern=_pattern(names, spec.rank_pattern, param="lora.rank_pattern"),
        alpha_pattern=_pattern(names, spec.alpha_pattern, param="lora.alpha_pattern"),
        # Conv1D, GPT-2's linear layer, keeps its matrix the other way round.
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in names),
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


def _modules_to_save(
    model: PreTrainedModel, wanted: Sequence[str] | None, adapted: Sequence[str]
) -> list[str] | None:
    """Return the modules to train in full under names that mean the same to peft.

    Raises:
        NoMatchingLayers: A name matches no module.
        UntrainableModule: A module has an adapter, is quantized, or shares its weight.
    """
    if wanted is None:
        return None
    modules = {n: m for n, m in model.named_modules() if next(m.parameters(), None) is not None}
    found = [name for name in modules if any(_matches(name, each) for each in wanted)]
    missing = [each for each in wanted if not any(_matches(name, each) for name in found)]
    if missing:
        raise NoMatchingLayers(
            f"no module of {type(model).__name__} is named {', '.join(missing)};"
            f" it has {', '.join(_kinds(filter(None, modules)))}",
            param="lora.modules_to_save",
        )
    for name in found:
        if problem := _untrainable(model, name, modules[name], adapted):
            raise UntrainableModule(f"{name} {problem}", param="lora.modules_to_save")
    # peft takes a name for the end of any other: `norm` also means `input_layernorm`.
    meant = [name for name, _ in model.named_modules() if name.endswith(tuple(wanted))]
    return list(wanted) if meant == found else found


def _untrainable(
    model: PreTrainedModel, name: str, module: nn.Module, adapted: Sequence[str]
) -> str | None:
    """Say why a module cannot be trained in full, or None."""
    if inside := [each for each in adapted if each == name or each.startswith(f"{name}.")]:
        return (
            f"cannot be trained in full: {inside[0]} gets an adapter; take it out of"
            " lora.modules_to_save, or out of lora.target_modules"
        )
    own = {id(weight) for weight in module.parameters()}
    if any(quantize.is_quantized(weight) for weight in module.parameters()):
        return "cannot be trained in full: it is stored in 4 bits; use adapter = lora"
    for other, owner in model.named_modules():
        weights = owner.parameters(recurse=False)
        if not f"{other}.".startswith(f"{name}.") and any(id(each) in own for each in weights):
            return (
                f"shares its weight with {other} in this model (tied embeddings); training a copy"
                " of it would untie the two, so it cannot be in lora.modules_to_save"
            )
    return None


def _require_biases(model: PreTrainedModel, adapted: Sequence[str], bias: str) -> None:
    """Refuse to train biases of a model that has none.

    Raises:
        NoMatchingLayers: There is nothing that `lora.bias` could mean.
    """
    biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    if bias == "lora_only":
        biases = [name for name in biases if name.removesuffix(".bias") in adapted]
    if bias != "none" and not biases:
        where = "the adapted layers have" if bias == "lora_only" else "the model has"
        raise NoMatchingLayers(
            f"lora.bias = {bias} trains biases, and {where} none; leave it out", param="lora.bias"
        )


def _pattern(layers: Sequence[str], given: Mapping[str, int], *, param: str) -> dict[str, int]:
    """Return a pattern in which no layer has two values; the longest name wins.

    Raises:
        NoMatchingLayers: A name matches none of the adapted layers.
    """
    missing = [name for name in given if not any(_matches(layer, name) for layer in layers)]
    if missing:
        raise NoMatchingLayers(
            f"{param} names {', '.join(missing)}, which is none of the adapted layers"
            f" {', '.join(_kinds(layers))}",
            param=param,
        )
    matching = {layer: [n for n in given if _matches(layer, n)] for layer in layers}
    if all(len(names) <= 1 for names in matching.values()):
        return dict(given)
    return {layer: given[max(names, key=len)] for layer, names in matching.items() if names}


def _kinds(layers: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in layers})


def _matches(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")
