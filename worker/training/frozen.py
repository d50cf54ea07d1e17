"""The frozen weights of a run: hashed when they are loaded, and again at the end."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

# Words that are multiplied at once; their odd multipliers repeat after that many.
_WORDS = 1 << 16
# 2**64 divided by the golden ratio, as a signed number.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


class FrozenWeights:
    """Knows what the frozen weights were; quantized ones count with their constants."""

    def __init__(self, model: nn.Module, *, trained: Collection[str]) -> None:
        self._model = model
        self._trained = frozenset(trained)
        self._before = self._digests()

    def changed(self) -> Sequence[str]:
        """Return the names of the tensors that are not what they were, or not there any more."""
        now = self._digests()
        names = {**self._before, **now}
        return [name for name in names if self._before.get(name) != now.get(name)]

    def __len__(self) -> int:
        return len(self._before)

    def _digests(self) -> dict[str, str]:
        tensors = {
            name: tensor
            for parameter_name, parameter in self._model.named_parameters()
            if parameter_name not in self._trained
            for name, tensor in _tensors(parameter_name, parameter).items()
        }
        # hashlib lets go of the interpreter: 0.5 GB take 0.3 s in one thread.
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as threads:
            return dict(zip(tensors, threads.map(digest, tensors.values()), strict=True))


def digest(tensor: torch.Tensor) -> str:
    """Hash type, shape and content: by SHA-256 on the CPU, by weighted sums on a GPU.

    A GPU's memory is read faster than it can be copied out. The sums tell any change of a single
    word; for an accident, which this is about, that several changes cancel is out of the question.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    label = f"{tensor.dtype} {tuple(tensor.shape)} "
    if data.device.type == "cpu":
        return label + hashlib.sha256(data.numpy().data).hexdigest()
    return label + weighted_sum(data)


def weighted_sum(data: torch.Tensor) -> str:
    """Return the sum of 64-bit words, each times an odd number of its own, modulo 2**64."""
    padding = -data.numel() % 8
    words = torch.cat([data, data.new_zeros(padding)]) if padding else data
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    multipliers = (torch.arange(1, _WORDS + 1, device=data.device) * _GOLDEN) | 1
    for part in words.view(torch.int64).split(_WORDS * 256):
        whole = part.numel() // _WORDS * _WORDS
        rows = (part[:whole].view(-1, _WORDS) * multipliers).sum(dim=1)
        rest = (part[whole:] * multipliers[: part.numel() - whole]).sum()
        # The order of the rows counts too.
        total = total * 31 + (rows * multipliers[: rows.numel()]).sum() + rest
    return f"{total.item() % (1 << 64):016x}"


def _tensors(name: str, parameter: nn.Parameter) -> Mapping[str, torch.Tensor]:
    """Return a weight and, when bitsandbytes has quantized it, the constants that belong to it."""
    found = {name: parameter.detach()}
    quant_state = getattr(parameter, "quant_state", None)
    for prefix, part in (("", quant_state), ("state2.", getattr(quant_state, "state2", None))):
        for key in ("absmax", "code", "offset"):
            value = getattr(part, key, None)
            if isinstance(value, torch.Tensor):
                found[f"{name}.{prefix}{key}"] = value
    return found
