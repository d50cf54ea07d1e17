"""The adapters that are attached to one base model, and which of them answers now."""

from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from app.domain.errors import InvalidModel
from app.domain.inference import Adapter
from worker.training.adapters import without_peft_warnings

_WEIGHTS = "adapter_model.safetensors"
# These ways to begin change the base model, which other adapters need as it is.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "eva")
_REFUSALS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OSError,
    RuntimeError,
    SafetensorError,
)


@dataclass(frozen=True)
class _Attached:
    """An adapter under its name in peft, with the biases of the base model that it replaces."""

    peft_name: str
    biases: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


class Shelf:
    """Attaches adapters when they are asked for, and drops the one that was not for longest.

    Args:
        base: The model; its layers are wrapped in place.
        most: Adapters to keep.
    """

    def __init__(self, base: PreTrainedModel, *, most: int) -> None:
        self.base = base
        self._most = most
        self._peft: PeftModel | None = None
        self._attached: OrderedDict[str, _Attached] = OrderedDict()
        self._active: str | None = None
        self._num_made = 0
        self._biases = {name: p for name, p in base.named_parameters() if name.endswith("bias")}
        self._own_biases = {name: p.detach().clone() for name, p in self._biases.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the attached adapters, the one that was used last at the end."""
        return tuple(self._attached)

    def has_place(self, adapter: Adapter | None, in_use: Collection[str]) -> bool:
        """Tell whether an adapter can be used without dropping one that is in use."""
        return adapter is None or len({*in_use} - {adapter.name}) < self._most

    def use(self, adapter: Adapter | None, in_use: Collection[str] = ()) -> None:
        """Let the model answer with an adapter, or alone.

        Args:
            adapter: The adapter; None for the base model.
            in_use: Names of adapters that are needed again soon.

        Raises:
            InvalidModel: Its files are missing or damaged, or it does not fit the model; the others
                are as they were.
        """
        name = None if adapter is None else adapter.name
        if adapter is not None:
            if adapter.name not in self._attached:
                self._active = "?"  # whatever was active may not be any more
                self._attached[adapter.name] = self._attach(adapter)
            self._attached.move_to_end(adapter.name)
        if name != self._active:
            self._switch(None if name is None else self._attached[name])
            self._active = name
        while len(self._attached) > self._most:
            self._drop_one({*in_use, *self.names[-1:]})

    def _attach(self, adapter: Adapter) -> _Attached:
        self._num_made += 1
        peft_name = f"lorad{self._num_made}"
        try:
            return _Attached(peft_name, self._load(adapter.folder, peft_name))
        except _REFUSALS as error:
            self._remove(peft_name)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InvalidModel(
                f"adapter {adapter.name} does not load on this model: {error}", param="model"
            ) from error
        finally:
            self._set_biases({})

    def _load(self, folder: Path, peft_name: str) -> dict[str, torch.Tensor]:
        """Attach the adapter in a folder; returns the biases that it replaces."""
        if not (folder / _WEIGHTS).is_file():
            raise FileNotFoundError(f"there is no {_WEIGHTS} in {folder}")
        config = _config(folder)
        biases = {} if config.bias == "none" else self._biases_in(folder)
        # peft lets one adapter only have biases; here each has its own, set when it is switched to.
        config.bias = "none"
        with without_peft_warnings():
            if self._peft is None:
                self._peft = _as_peft(get_peft_model(self.base, config, peft_name))
            else:
                self._peft.add_adapter(peft_name, config)
            found = self._peft.load_adapter(
                folder, peft_name, torch_device=str(self.base.device), local_files_only=True
            )
        self._peft.eval()
        if found.missing_keys:
            raise ValueError(f"its file lacks {len(found.missing_keys)} of its weights")
        return biases

    def _biases_in(self, folder: Path) -> dict[str, torch.Tensor]:
        device = str(self.base.device)
        stored = load_file(folder / _WEIGHTS, device=device).items()
        plain = {_plain(name): value for name, value in stored if name.endswith("bias")}
        return {name: value for name, value in plain.items() if name in self._biases}

    def _switch(self, to: _Attached | None) -> None:
        if self._peft is not None:
            tuner: Any = self._peft.base_model
            if to is None:
                tuner.disable_adapter_layers()
            else:
                tuner.enable_adapter_layers()
                self._peft.set_adapter(to.peft_name, inference_mode=True)
        self._set_biases({} if to is None else to.biases)

    def _set_biases(self, given: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, bias in self._biases.items():
                bias.copy_(given.get(name, self._own_biases[name]))

    def _drop_one(self, kept: set[str]) -> None:
        name = next((name for name in self._attached if name not in kept), None)
        if name is None:
            raise AssertionError("more adapters are in use than there are places")
        self._remove(self._attached.pop(name).peft_name)

    def _remove(self, peft_name: str) -> None:
        if self._peft is not None and peft_name in self._peft.peft_config:
            with suppress(*_REFUSALS):
                self._peft.delete_adapter(peft_name)


def _config(folder: Path) -> LoraConfig:
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"it is of type {config.peft_type}, not LORA")
    way = str(config.init_lora_weights).lower()
    if way.startswith(_CHANGES_BASE) or getattr(config, "kasa_config", None) is not None:
        raise ValueError(f"init_lora_weights = {way} changes the base model, which others share")
    config.inference_mode = True
    # peft warns where it differs from the folder here; which base it is, is known.
    config.base_model_name_or_path = None
    return config


def _as_peft(model: nn.Module) -> PeftModel:
    assert isinstance(model, PeftModel)
    return model


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
