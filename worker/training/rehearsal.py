"""A training step on tensors without memory, to count what it would need of it.

The model, its adapters and our own layers are the real ones, of the real shapes; only the numbers
are missing (torch's FakeTensor), so a step of any size takes no memory. Each allocation and release
of the forward and the backward pass is counted.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from app.domain.errors import InvalidModel
from app.domain.spec import JobSpec
from worker.training import adapters, attention, fast_layers, model
from worker.training.adapters import Adapted
from worker.training.batch import Batch
from worker.training.loss import make_loss_sum
from worker.training.products import times_transposed

# All layers of a model are alike, or none is left out: memory grows by the same with each.
_FEW, _FEW_AND_ONE = 2, 3


@dataclass(frozen=True)
class Live:
    """Bytes of tensors that a micro-batch keeps in use at the same time."""

    activations: int
    """After the forward pass through the layers."""
    loss: int
    """What the loss and the backward pass add to it at their highest point."""

    @property
    def total(self) -> int:
        return self.activations + self.loss


def skeleton(spec: JobSpec, folder: Path, *, dtype: torch.dtype) -> Adapted:
    """Build a model with its adapters that has shapes and no numbers.

    Raises:
        InvalidModel: The architecture is not known.
        NoMatchingLayers: The adapters fit no layer.
    """
    attention.register()
    with torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            base = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention.NAME
            )
        except (ValueError, KeyError, OSError) as error:
            raise InvalidModel(f"model {folder.name} cannot be planned: {error}") from error
        base.requires_grad_(requires_grad=False)
        base.train()
        if spec.quantization.load_in_4bit:
            _stand_in_for_quantized(base)
        return adapters.attach(base, spec.lora, seed=0, base_model=spec.base_model)


class Rehearsal:
    """Counts steps of one run.

    Args:
        adapted: A skeleton; it is used up.
        spec: The run.
        tokens_per_step: Tokens of an average optimizer step.
    """

    def __init__(self, adapted: Adapted, spec: JobSpec, *, tokens_per_step: float) -> None:
        self._mode = FakeTensorMode()
        self._adapted = adapted
        # Some layers are compared with ours first; their vectors have numbers until that is done.
        _replace_vectors(adapted.model, real=True)
        with self._mode:
            _replace(adapted.model)
        fast_layers.speed_up(adapted.base, tokens_per_step=tokens_per_step)
        if spec.training.gradient_checkpointing is True:
            model.enable_checkpointing(adapted.base)
        with self._mode:
            _replace_vectors(adapted.model, real=False)
        self._loss_sum = make_loss_sum(adapted.base)
        self._layers = _layers(adapted.base)

    def step(self, lengths: Sequence[int], num_targets: int) -> Live:
        """Count the forward and the backward pass of a micro-batch.

        Args:
            lengths: Tokens of each row.
            num_targets: Tokens that have a label.
        """
        if self._layers is None or len(self._layers[2]) <= _FEW_AND_ONE:
            return self._count(lengths, num_targets)
        owner, name, layers = self._layers
        counts: list[Live] = []
        for number in (_FEW, _FEW_AND_ONE):
            setattr(owner, name, layers[:number])
            counts.append(self._count(lengths, num_targets))
        setattr(owner, name, layers)
        few, more = counts
        missing = len(layers) - _FEW
        return Live(
            activations=few.activations + missing * (more.activations - few.activations),
            loss=few.loss + missing * (more.loss - few.loss),
        )

    def _count(self, lengths: Sequence[int], num_targets: int) -> Live:
        own = [t.untyped_storage() for t in self._adapted.model.parameters()]
        own += [t.untyped_storage() for t in self._adapted.model.buffers()]
        ledger = _Ledger(own)
        decoder: nn.Module = self._adapted.base.get_decoder()
        after_forward: list[int] = []
        hook = decoder.register_forward_hook(lambda *_: after_forward.append(ledger.live))
        try:
            with torch.random.fork_rng(devices=[]), self._mode, ledger:
                loss = self._loss_sum(_batch(lengths, num_targets))
                loss.backward()
        finally:
            hook.remove()
            for parameter in self._adapted.model.parameters():
                parameter.grad = None
        activations = after_forward[0] if after_forward else ledger.peak
        return Live(activations, max(0, ledger.peak - activations))


class Linear4bit(nn.Linear):
    """Stands for bitsandbytes' layer of that name, whose matrix is unpacked for every product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product = _UnpackedProduct.apply(input, self.weight)
        assert isinstance(product, torch.Tensor)
        has_bias = "bias" in dict(self.named_parameters())
        return product + self.bias if has_bias else product


class _UnpackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return times_transposed(x, torch.empty_like(weight, dtype=x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = grad_outputs[0].contiguous()
        return times_transposed(gradient, torch.empty_like(ctx.weight).T), None


def _stand_in_for_quantized(base: PreTrainedModel) -> None:
    head = base.get_output_embeddings()
    for layer in adapters.linear_layers(base).values():
        if type(layer) is nn.Linear and layer is not head:
            layer.__class__ = Linear4bit


class _Ledger(TorchDispatchMode):
    """Keeps the books of storages: the bytes in use, and the most there ever were."""

    def __init__(self, own: Sequence[torch.UntypedStorage]) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes = {_key(storage): 0 for storage in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _run(func, args, kwargs or {})
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._enter(value.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = _key(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def _key(storage: torch.UntypedStorage) -> int:
    # Fake storages have no address, but each is an object of torch's own.
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.mkldnn._linear_pointwise.binary:
        # torch knows no shape for this one alone: x @ weight.T, with something added.
        x, _, weight = args[:3]
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    if func is torch.ops.aten.equal.default:
        # A look at numbers that are not there: merged sums ask whether they still hold.
        return False
    return func(*args, **kwargs)


def _replace(module: nn.Module) -> None:
    """Replace matrices and buffers by tensors of the mode that is on."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if weight.dim() == 1:
                continue
            # Matrices may be shared, such as tied embeddings.
            if id(weight) not in made:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                made[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
            setattr(part, name, made[id(weight)])
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


def _replace_vectors(module: nn.Module, *, real: bool) -> None:
    make = torch.ones if real else torch.empty
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if weight.dim() == 1:
                vector = make(weight.shape, dtype=weight.dtype, device="cpu")
                setattr(part, name, nn.Parameter(vector, requires_grad=weight.requires_grad))


def _layers(base: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """Find the list of the model's layers; None where they are not alike."""
    decoder: nn.Module = base.get_decoder()
    for name, child in decoder.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == base.config.num_hidden_layers:
            kinds = {_signature(layer) for layer in child}
            types = set(getattr(base.config, "layer_types", None) or ())
            return (decoder, name, child) if len(kinds) == 1 and len(types) <= 1 else None
    return None


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    return tuple((n, tuple(p.shape), p.requires_grad) for n, p in layer.named_parameters())


def _batch(lengths: Sequence[int], num_targets: int) -> Batch:
    num_tokens = sum(lengths)
    return Batch(
        input_ids_BT=torch.zeros(1, num_tokens, dtype=torch.int64),
        position_ids_BT=torch.zeros(1, num_tokens, dtype=torch.int64),
        lengths=tuple(lengths),
        label_positions_N=torch.zeros(num_targets, dtype=torch.int64),
        labels_N=torch.zeros(num_targets, dtype=torch.int64),
    )
