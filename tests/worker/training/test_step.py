"""One optimizer step, on a model of two matrices."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.domain.errors import NonFiniteStep
from worker.training import optim
from worker.training.batch import Batch
from worker.training.step import StepResult, train_step


class Trained:
    """A frozen embedding and a trained output matrix with AdamW."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(11, 4, generator=generator)
        self.weight = nn.Parameter(torch.randn(11, 4, generator=generator))
        self.optimizer = optim.make_optimizer([self.weight], weight_decay=0.0)
        optim.set_learning_rate(self.optimizer, 0.1)

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        hidden = self.embedding[batch.input_ids_BT[0]][batch.label_positions_N]
        return F.cross_entropy(hidden @ self.weight.T, batch.labels_N, reduction="sum")

    def step(self, batches: Sequence[Batch], max_grad_norm: float = 1.0) -> StepResult:
        return train_step(
            self.loss_sum, [self.weight], self.optimizer, batches, max_grad_norm=max_grad_norm
        )


def make_batch(ids: Sequence[int], *, num_targets: int) -> Batch:
    tokens = torch.tensor([list(ids)])
    positions = torch.arange(len(ids) - 1)[-num_targets:]
    return Batch(
        input_ids_BT=tokens,
        position_ids_BT=torch.arange(len(ids))[None],
        lengths=(len(ids),),
        label_positions_N=positions,
        labels_N=tokens[0, positions + 1],
    )


ONE = make_batch((1, 2, 3), num_targets=1)
TEN = make_batch((4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4), num_targets=10)
BOTH = Batch(
    input_ids_BT=torch.cat([ONE.input_ids_BT, TEN.input_ids_BT], dim=1),
    position_ids_BT=torch.cat([ONE.position_ids_BT, TEN.position_ids_BT], dim=1),
    lengths=(3, 11),
    label_positions_N=torch.cat([ONE.label_positions_N, TEN.label_positions_N + 3]),
    labels_N=torch.cat([ONE.labels_N, TEN.labels_N]),
)


def test_splitting_a_step_does_not_change_it():
    whole, parts = Trained(), Trained()

    one = whole.step([BOTH])
    other = parts.step([ONE, TEN])

    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
    assert other.num_targets == one.num_targets == 11
    assert other.num_tokens == one.num_tokens == 14
    torch.testing.assert_close(whole.weight, parts.weight)


def test_the_loss_is_in_nats_per_target_token():
    trained = Trained()
    trained.weight.data.zero_()

    # All logits are equal, so every token costs log(11).
    assert trained.step([ONE, TEN]).loss == pytest.approx(2.397895, rel=1e-6)


def test_norms_are_of_the_gradient_before_clipping_and_of_the_weights_before_the_update():
    clipped, free = Trained(), Trained()
    before = free.weight.detach().clone()

    small = clipped.step([BOTH], max_grad_norm=1e-3)
    large = free.step([BOTH], max_grad_norm=1e9)

    assert small.grad_norm == pytest.approx(large.grad_norm, rel=1e-6)
    assert small.param_norm == pytest.approx(before.norm().item(), rel=1e-6)


def test_clipping_scales_the_gradient_to_the_limit():
    seen: list[float] = []

    class Watched(Trained):
        def __init__(self) -> None:
            super().__init__()
            self.optimizer.register_step_pre_hook(
                lambda *_: seen.append(self.weight.grad.norm().item())  # type: ignore[union-attr]
            )

    Watched().step([BOTH], max_grad_norm=1e-3)

    assert seen == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_touches_no_weight_and_no_state(value: float):
    trained = Trained()
    trained.step([ONE])
    before = trained.weight.detach().clone()
    moments = {k: v.clone() for k, v in trained.optimizer.state[trained.weight].items()}
    trained.embedding[5, 0] = value

    with pytest.raises(NonFiniteStep, match="the update was not applied"):
        trained.step([ONE, TEN])

    assert torch.equal(trained.weight, before)
    assert trained.weight.grad is None
    for name, tensor in trained.optimizer.state[trained.weight].items():
        assert torch.equal(tensor, moments[name])
