"""Gradient flow: what is named when a gradient does not go where it should."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.domain.events import GradientFlowEvent, NoticeEvent
from app.domain.gradient_flow import GradientFlow
from app.domain.options import LoraSpec
from app.domain.runs import EVENTS_FILE
from tests.training_runs import Attempt, Workplace
from worker.training import adapters, model, optim
from worker.training.adapters import Adapted
from worker.training.batch import Batch
from worker.training.gradients import FlowWatch, place_of
from worker.training.loss import make_loss_sum
from worker.training.reporting import EventLog
from worker.training.step import NotApplied, train_step

Q0, Q1, V1 = (
    f"base_model.model.model.layers.{layer}.self_attn.{name}"
    for layer, name in ((0, "q_proj"), (1, "q_proj"), (1, "v_proj"))
)
ALL = {
    (layer, f"self_attn.{name}", matrix)
    for layer in (0, 1)
    for name in ("q_proj", "v_proj")
    for matrix in "AB"
}


class Bench:
    """The tiny Llama with adapters on q and v, and steps taken by hand.

    Args:
        model_folder: The tiny Llama.
        events: File of the events.
    """

    def __init__(self, model_folder: Path, events: Path, **lora: Any) -> None:
        cpu = torch.device("cpu")
        base = model.load_model(model_folder, dtype=torch.float32, device=cpu)
        spec = LoraSpec(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **lora)
        self.adapted: Adapted = adapters.attach(base, spec, seed=7, base_model="tiny")
        self.parameters = self.adapted.parameters
        self.watch = FlowWatch(self.adapted.model, self.parameters, every=5)
        self.optimizer = optim.make_optimizer(list(self.parameters.values()), weight_decay=0.0)
        self.loss_sum = make_loss_sum(self.adapted.base)
        self.log = EventLog(events)
        self.events = events
        self.num_updates = 0
        self.steps = 0

    def module(self, name: str) -> nn.Module:
        return self.adapted.model.get_submodule(name)

    def step(self, *, learning_rate: float = 1e-3, num_updates: int | None = None) -> None:
        self.steps += 1
        optim.set_learning_rate(self.optimizer, learning_rate)
        try:
            train_step(
                self.loss_sum,
                list(self.parameters.values()),
                self.optimizer,
                [_BATCH],
                max_grad_norm=1.0,
                inspect_gradients=self.watch.inspection(self.steps),
            )
            self.num_updates += learning_rate > 0
        except NotApplied:
            pass
        self.watch.report(
            self.log,
            step=self.steps,
            learning_rate=learning_rate,
            num_updates=self.num_updates if num_updates is None else num_updates,
        )

    def tables(self) -> list[GradientFlow]:
        return [e.gradient_flow for e in self._events() if isinstance(e, GradientFlowEvent)]

    def notices(self) -> list[NoticeEvent]:
        return [e for e in self._events() if isinstance(e, NoticeEvent)]

    def _events(self) -> list[Any]:
        from app.domain.events import TRAINER_EVENT

        return [TRAINER_EVENT.validate_json(line) for line in self.events.read_bytes().splitlines()]


_BATCH = Batch(
    input_ids_BT=torch.arange(100, 112)[None],
    position_ids_BT=torch.arange(12)[None],
    lengths=(12,),
    label_positions_N=torch.arange(11),
    labels_N=torch.arange(101, 112),
)


def in_state(flow: GradientFlow, *states: str) -> set[tuple[int | None, str, str]]:
    return {(m.layer, m.module, m.matrix) for m in flow.matrices if m.state in states}


@pytest.fixture
def make_bench(tiny_llama: Path, tmp_path: Path) -> Callable[..., Bench]:
    return lambda **lora: Bench(tiny_llama, tmp_path / EVENTS_FILE, **lora)


def test_a_needs_a_gradient_only_once_a_b_has_moved(make_bench: Callable[..., Bench]):
    bench = make_bench()

    for learning_rate in (0.0, 1e-3, 1e-3):  # warm-up makes the first one zero
        bench.step(learning_rate=learning_rate)

    first, second, third = bench.tables()
    all_of = {matrix: {each for each in ALL if each[2] == matrix} for matrix in "AB"}
    assert in_state(first, "not_applicable") == in_state(second, "not_applicable") == all_of["A"]
    assert in_state(first, "healthy") == in_state(second, "healthy") == all_of["B"]
    assert in_state(third, "healthy") == ALL
    assert all(flow.is_healthy for flow in (first, second, third))
    assert not bench.notices()


def test_the_table_holds_what_was_measured_before_clipping(make_bench: Callable[..., Bench]):
    bench = make_bench()
    seen: dict[str, float] = {}
    start = {name: p.detach().clone() for name, p in bench.parameters.items()}
    bench.step()
    before = {name: p.detach().clone() for name, p in bench.parameters.items()}
    for name, p in bench.parameters.items():
        p.register_post_accumulate_grad_hook(
            lambda p, name=name: seen.__setitem__(name, p.grad.norm().item())  # type: ignore[union-attr]
        )

    bench.step()

    for name, row in zip(bench.parameters, bench.tables()[1].matrices, strict=True):
        after = bench.parameters[name].detach()
        assert row.grad_norm == pytest.approx(seen[name], rel=1e-5)
        assert row.norm == pytest.approx(before[name].norm().item(), rel=1e-5)
        assert row.distance == pytest.approx((after - start[name]).norm().item(), rel=1e-4)
        update = (after - before[name]).norm() / before[name].norm()
        assert row.update_ratio == pytest.approx(update.item(), rel=1e-4)
        assert place_of(name).matrix == row.matrix


def test_looking_changes_nothing(tiny_llama: Path, tmp_path: Path):
    looking, blind = (Bench(tiny_llama, tmp_path / name) for name in "ab")
    blind.watch.every = 0

    for _ in range(3):
        looking.step()
        blind.step()

    assert len(looking.tables()) == 3
    assert blind.tables() == []
    for one, other in zip(looking.parameters.values(), blind.parameters.values(), strict=True):
        assert torch.equal(one, other)


def test_steps_1_to_3_and_every_few_are_sampled(make_bench: Callable[..., Bench]):
    watch = make_bench().watch

    assert [step for step in range(1, 16) if watch.inspection(step)] == [1, 2, 3, 5, 10, 15]


def test_a_module_whose_adapter_is_detached_is_named(make_bench: Callable[..., Bench]):
    bench = make_bench()
    bench.module(f"{V1}.lora_B.default").register_forward_hook(lambda *given: given[2].detach())

    for _ in range(3):
        bench.step()

    dead = {(1, "self_attn.v_proj", "B")}
    assert in_state(bench.tables()[0], "dead") == dead
    assert in_state(bench.tables()[2], "dead") == dead | {(1, "self_attn.v_proj", "A")}
    assert not bench.tables()[0].is_healthy
    told = [notice.data["dead"] for notice in bench.notices()]
    assert told == [
        ["layer 1 self_attn.v_proj B"],
        ["layer 1 self_attn.v_proj A", "layer 1 self_attn.v_proj B"],
    ]
    assert "layer 1 self_attn.v_proj B" in bench.notices()[0].message


def test_a_gradient_that_is_zeroed_is_named(make_bench: Callable[..., Bench]):
    bench = make_bench()
    bench.parameters[f"{Q1}.lora_B.default.weight"].register_hook(torch.zeros_like)

    bench.step()

    assert in_state(bench.tables()[0], "dead") == {(1, "self_attn.q_proj", "B")}


def test_a_b_that_is_frozen_is_named(make_bench: Callable[..., Bench]):
    bench = make_bench()
    bench.parameters[f"{Q0}.lora_B.default.weight"].requires_grad_(requires_grad=False)

    bench.step()

    assert in_state(bench.tables()[0], "dead") == {(0, "self_attn.q_proj", "B")}


@pytest.mark.parametrize(("matrix", "step"), [("B", 1), ("A", 2)])
def test_a_matrix_that_does_not_move_is_named_as_soon_as_it_should_have(
    make_bench: Callable[..., Bench], matrix: str, step: int
):
    bench = make_bench()
    stuck = bench.parameters[f"{Q0}.lora_{matrix}.default.weight"]
    bench.optimizer.param_groups[0]["params"] = [
        p for p in bench.parameters.values() if p is not stuck
    ]

    for _ in range(2):
        bench.step()

    tables = bench.tables()
    stuck_at = [t.step for t in tables if in_state(t, "not_moving")]
    assert stuck_at == list(range(step, 3))
    assert in_state(tables[step - 1], "not_moving") == {(0, "self_attn.q_proj", matrix)}
    assert bench.notices()[0].data["not_moving"] == [f"layer 0 self_attn.q_proj {matrix}"]


def test_a_gradient_that_is_not_finite_is_named_with_its_matrix_alone(
    make_bench: Callable[..., Bench],
):
    bench = make_bench()
    bench.parameters[f"{V1}.lora_B.default.weight"].register_hook(lambda g: g * float("nan"))

    bench.step()

    (flow,) = bench.tables()
    assert in_state(flow, "nonfinite") == {(1, "self_attn.v_proj", "B")}
    assert [m.grad_norm for m in flow.matrices if m.state == "nonfinite"] == [None]


def test_a_frozen_weight_with_a_gradient_is_named(make_bench: Callable[..., Bench]):
    bench = make_bench()
    weight = bench.module(f"{Q0}.base_layer").weight
    assert isinstance(weight, nn.Parameter)
    weight.grad = torch.zeros_like(weight)

    bench.step()

    assert bench.tables()[0].frozen_with_gradient == (f"{Q0}.base_layer.weight",)
    assert not bench.tables()[0].is_healthy
    assert f"{Q0}.base_layer.weight" in bench.notices()[0].message


def test_the_same_trouble_is_told_once(make_bench: Callable[..., Bench]):
    bench = make_bench()
    bench.parameters[f"{Q1}.lora_B.default.weight"].register_hook(torch.zeros_like)

    bench.step(learning_rate=0.0)
    bench.step(learning_rate=0.0)

    assert len(bench.tables()) == 2
    assert len(bench.notices()) == 1


def test_magnitudes_of_dora_and_saved_modules_are_matrices_too(make_bench: Callable[..., Bench]):
    bench = make_bench(use_dora=True, modules_to_save=["norm"])

    for _ in range(3):
        bench.step()

    table = bench.tables()[2]
    assert table.is_healthy
    kinds = {(m.layer, m.module, m.matrix) for m in table.matrices} - ALL
    magnitudes = {
        (n, f"self_attn.{name}", "magnitude") for n in (0, 1) for name in ("q_proj", "v_proj")
    }
    assert kinds == magnitudes | {(None, "model.norm", "weight")}


def test_an_update_lost_in_rounding_is_no_fault(make_bench: Callable[..., Bench]):
    bench = make_bench(use_dora=True)

    for _ in range(3):
        bench.step(learning_rate=1e-12)

    # B starts at zero and moves all the same; nothing else can.
    assert all(table.is_healthy for table in bench.tables())


def flows(attempt: Attempt) -> dict[int, GradientFlow]:
    return {e.step: e.gradient_flow for e in attempt.events if isinstance(e, GradientFlowEvent)}


def test_a_resumed_run_reports_the_same_distances(workplace: Workplace):
    keys: dict[str, Any] = {
        "training": {"per_device_train_batch_size": 2, "max_steps": 6},
        "monitoring": {"gradient_flow_steps": 1},
    }
    whole = workplace.train(**keys)
    stopped = workplace.train_until(3, "pause", **keys)

    rest = workplace.train(**keys, resume=stopped.checkpoint(3))

    assert flows(stopped) | flows(rest) == flows(whole)
    assert sorted(flows(whole)) == [1, 2, 3, 4, 5, 6]


def test_a_run_without_gradient_flow_reports_none(workplace: Workplace):
    attempt = workplace.train(training={"max_steps": 3}, monitoring={"gradient_flow_steps": 0})

    assert attempt.exit_code == 0
    assert flows(attempt) == {}
