"""Gradient flow: whether every trained matrix gets a gradient and moves."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from app.domain.gradient_flow import GradientFlow, MatrixFlow, MatrixState
from worker.training.reporting import EventLog

_FIRST_STEPS = 3
_ADAPTER_PARTS = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
}
# Parts of names that say where PEFT put a tensor and nothing about the model.
_WRAPPING = ("base_layer", "default", "modules_to_save")
_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Place:
    """Where in the model a trained matrix is."""

    layer: int | None
    module: str
    matrix: str

    def __str__(self) -> str:
        where = self.module if self.layer is None else f"layer {self.layer} {self.module}"
        return f"{where} {self.matrix}"

    @property
    def may_be_idle(self) -> bool:
        """Whether a step can pass it by: an expert that no token was sent to has no gradient."""
        return ".experts." in f".{self.module}"


@dataclass(frozen=True)
class _Norms:
    """What was measured of one matrix; a missing gradient counts as 0."""

    gradient: float
    weight: float
    distance: float
    update: float

    @property
    def are_finite(self) -> bool:
        return all(map(math.isfinite, (self.gradient, self.weight, self.distance)))


@dataclass(frozen=True)
class _Sample:
    """What a step looked like before its update; on the device until the step is reported."""

    gradient_norms: torch.Tensor
    weights: Sequence[torch.Tensor]
    frozen_with_gradient: Sequence[str]


@dataclass
class FlowWatch:
    """Measures the sampled steps of a run.

    Args:
        model: The model with its adapters.
        parameters: What is trained, by name, as the run starts: before a resume restores anything.
        every: Steps between samples beside the first three; 0 samples none.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    every: int
    _initial: Sequence[torch.Tensor] = field(init=False)
    _sample: _Sample | None = field(default=None, init=False)
    _told: frozenset[tuple[str, str]] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        self._initial = [p.detach().clone() for p in self.parameters.values()]

    def inspection(self, step: int) -> Callable[[], None] | None:
        """Return what `train_step` has to call, or None at a step that is not sampled."""
        is_sampled = self.every > 0 and (step <= _FIRST_STEPS or step % self.every == 0)
        return self._look if is_sampled else None

    def report(self, log: EventLog, *, step: int, learning_rate: float, num_updates: int) -> None:
        """Report the step that was looked at, if it was.

        Args:
            log: Receives the table, and a notice the first time that the same matrices are unwell.
            step: The optimizer step.
            learning_rate: That of the step.
            num_updates: Updates with a learning rate above zero so far, this step's included.
        """
        sample, self._sample = self._sample, None
        if sample is None:
            return
        flow = self._flow(sample, step, learning_rate, num_updates)
        log.gradient_flow(flow)
        self._tell(log, flow)

    @torch.no_grad()
    def distances(self) -> dict[str, float]:
        """Return how far, in L2 norm, each matrix is from where the run started."""
        weights = [p.detach() for p in self.parameters.values()]
        moved = _norms(_differences(weights, self._initial))
        return dict(zip(self.parameters, moved.tolist(), strict=True))

    @torch.no_grad()
    def _look(self) -> None:
        trained = {id(p) for p in self.parameters.values()}
        gradients = [p.grad for p in self.parameters.values()]
        self._sample = _Sample(
            gradient_norms=_spread(
                _norms([g for g in gradients if g is not None]), [g is not None for g in gradients]
            ),
            weights=[p.detach().clone() for p in self.parameters.values()],
            frozen_with_gradient=[
                name
                for name, p in self.model.named_parameters()
                if p.grad is not None and id(p) not in trained
            ],
        )

    @torch.no_grad()
    def _flow(
        self, sample: _Sample, step: int, learning_rate: float, num_updates: int
    ) -> GradientFlow:
        weights = [p.detach() for p in self.parameters.values()]
        measured = (
            sample.gradient_norms,
            _norms(sample.weights),
            _norms(_differences(weights, self._initial)),
            _norms(_differences(weights, sample.weights)),
        )
        device = weights[0].device
        # The one device sync of a report.
        rows = torch.stack([norms.to(device) for norms in measured]).T.tolist()
        norms = {name: _Norms(*row) for name, row in zip(self.parameters, rows, strict=True)}
        places = {name: place_of(name) for name in self.parameters}
        has_signal = any(norms[name].weight != 0 for name in norms if places[name].matrix == "B")
        matrices = [
            _matrix(
                places[name],
                norms[name],
                _state(
                    places[name],
                    norms[name],
                    is_gradient_due=places[name].matrix != "A" or has_signal,
                    is_move_due=num_updates >= (1 if places[name].matrix == "B" else 2)
                    and is_felt(parameter, norms[name].weight, learning_rate),
                ),
            )
            for name, parameter in self.parameters.items()
        ]
        is_healthy = all(each.state in ("healthy", "not_applicable") for each in matrices)
        return GradientFlow(
            step=step,
            is_healthy=is_healthy and not sample.frozen_with_gradient,
            frozen_with_gradient=tuple(sample.frozen_with_gradient),
            matrices=tuple(matrices),
        )

    def _tell(self, log: EventLog, flow: GradientFlow) -> None:
        """Write a notice that names what is unwell, unless the last notice named the same."""
        unwell: dict[str, list[str]] = {
            state: [
                str(Place(each.layer, each.module, each.matrix))
                for each in flow.matrices
                if each.state == state
            ]
            for state in ("dead", "not_moving", "nonfinite")
        }
        unwell["frozen_with_gradient"] = list(flow.frozen_with_gradient)
        now = frozenset((state, name) for state, names in unwell.items() for name in names)
        if now and now != self._told:
            told = "; ".join(
                _SENTENCES[state].format(shortened(names))
                for state, names in unwell.items()
                if names
            )
            message = f"at step {flow.step} {told}"
            log.notice(step=flow.step, code="gradient_flow", message=message, **unwell)  # pyright: ignore[reportArgumentType]
        self._told = now


_SENTENCES = {
    "dead": "no gradient reaches {}",
    "not_moving": "the weights do not move, in spite of gradient and learning rate, in {}",
    "nonfinite": "gradient or weights are not finite in {}",
    "frozen_with_gradient": "there is a gradient for what is frozen: {}",
}


def place_of(name: str) -> Place:
    """Tell from a parameter's name in PEFT's model where it is and which matrix it is."""
    parts = [p for p in name.removeprefix("base_model.model.").split(".") if p not in _WRAPPING]
    marks = [index for index, part in enumerate(parts) if part in _ADAPTER_PARTS]
    end = marks[0] if marks else len(parts) - 1
    matrix = _ADAPTER_PARTS.get(parts[end], parts[end])
    numbers = [index for index, part in enumerate(parts[:end]) if part.isdecimal()]
    if not numbers:
        return Place(None, ".".join(parts[:end]), matrix)
    return Place(int(parts[numbers[0]]), ".".join(parts[numbers[0] + 1 : end]), matrix)


def is_felt(parameter: torch.Tensor, norm: float, learning_rate: float) -> bool:
    """Tell whether an update of the size of the learning rate survives rounding.

    Adam's first updates are about as large as the learning rate; added to weights that are more
    than 1 / eps times larger they vanish, which is then no fault.

    Args:
        parameter: What is updated.
        norm: L2 norm of its weights.
        learning_rate: That of the update.
    """
    typical = norm / math.sqrt(parameter.numel())
    return learning_rate > torch.finfo(parameter.dtype).eps * typical


def shortened(names: Sequence[str]) -> str:
    """Write the first names and count the others."""
    shown = ", ".join(names[:_NAMED_AT_MOST])
    rest = len(names) - _NAMED_AT_MOST
    return f"{shown} and {rest} more" if rest > 0 else shown


def _state(place: Place, norms: _Norms, *, is_gradient_due: bool, is_move_due: bool) -> MatrixState:
    """Judge one matrix.

    An adapter adds (alpha / rank) * B @ A to a frozen weight and starts with B = 0. The gradient
    of A is a product with B, so it is exactly zero until some B has moved, and only B can be asked
    for a signal; A itself moves one update later.

    Source:
        Hu et al. 2021, arXiv:2106.09685, section 4.1 (B starts at zero).
    """
    if not norms.are_finite:
        return "nonfinite"
    if norms.gradient == 0:
        return "dead" if is_gradient_due and not place.may_be_idle else "not_applicable"
    if is_move_due and norms.distance == 0:
        return "not_moving"
    return "healthy"


def _matrix(place: Place, norms: _Norms, state: MatrixState) -> MatrixFlow:
    return MatrixFlow(
        layer=place.layer,
        module=place.module,
        matrix=place.matrix,
        grad_norm=_finite(norms.gradient),
        norm=_finite(norms.weight),
        distance=_finite(norms.distance),
        update_ratio=_finite(norms.update / norms.weight) if norms.weight else None,
        state=state,
    )


def _norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the L2 norm of each tensor as one vector, in a few calls for all of them."""
    if not tensors:
        return torch.zeros(0)
    norms = torch._foreach_norm(list(tensors), 2, dtype=torch.float32)  # pyright: ignore[reportPrivateUsage]
    return torch.stack(list(norms))


def _differences(
    ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    return torch._foreach_sub(list(ones), list(others))  # pyright: ignore[reportPrivateUsage]


def _spread(values: torch.Tensor, is_there: Iterable[bool]) -> torch.Tensor:
    """Put values where they are there, and zeros elsewhere."""
    mask = torch.tensor(list(is_there))
    result = torch.zeros(len(mask), device=values.device)
    result[mask.nonzero()[:, 0].to(values.device)] = values
    return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
