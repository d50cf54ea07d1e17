"""`lorad gradient-flow` and `lorad certificate`: what a terminal and a script get to see."""

import json
from typing import Any

import pytest

from app.domain.certificates import Certificate, Check
from app.domain.gradient_flow import GradientFlow, MatrixFlow
from tests.cli.conftest import JOB_ID, Answer, FakeApi, listing


def matrix(layer: int, name: str, state: Any, grad_norm: float | None) -> MatrixFlow:
    return MatrixFlow(
        layer=layer,
        module="self_attn.q_proj",
        matrix=name,
        grad_norm=grad_norm,
        norm=1.0,
        distance=0.1,
        update_ratio=0.01,
        state=state,
    )


def table(step: int, *matrices: MatrixFlow) -> dict[str, Any]:
    flow = GradientFlow(
        step=step,
        is_healthy=all(each.state == "healthy" for each in matrices),
        frozen_with_gradient=(),
        matrices=matrices,
    )
    return flow.model_dump(mode="json")


HEALTHY = table(1, matrix(0, "A", "healthy", 0.01), matrix(0, "B", "healthy", 100.0))
UNWELL = table(2, matrix(0, "A", "dead", 0.0), matrix(0, "B", "nonfinite", None))


@pytest.fixture
def tables(api: FakeApi) -> FakeApi:
    api.on(f"GET /jobs/{JOB_ID}/gradient-flow", listing(HEALTHY, UNWELL))
    return api


def test_the_newest_table_is_drawn_and_what_is_unwell_is_listed(tables: FakeApi, lorad: Any):
    shown = lorad("gradient-flow", JOB_ID)

    assert shown.code == 0
    assert "step 2" in shown.stdout
    assert "DEAD: layer 0 self_attn.q_proj A" in shown.stdout
    assert "NAN: layer 0 self_attn.q_proj B" in shown.stdout
    assert "healthy" not in shown.stdout


def test_a_step_can_be_chosen_and_its_norms_are_powers_of_ten(tables: FakeApi, lorad: Any):
    shown = lorad("gradient-flow", JOB_ID, "--step", "1")

    assert "A  -2.0" in shown.stdout
    assert "B   2.0" in shown.stdout
    assert "healthy: every matrix" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_a_step_that_was_not_sampled_is_refused_with_those_that_were(tables: FakeApi, lorad: Any):
    shown = lorad("gradient-flow", JOB_ID, "--step", "7")

    assert shown.code == 3
    assert "sampled steps: 1, 2" in shown.stderr


def test_a_script_gets_the_table_as_json(tables: FakeApi, lorad: Any):
    shown = lorad("gradient-flow", JOB_ID, "-o", "json")

    assert json.loads(shown.stdout) == UNWELL


@pytest.mark.parametrize(("status", "code"), [("passed", 0), ("failed", 100)])
def test_a_certificate_that_failed_is_an_code(api: FakeApi, lorad: Any, status: Any, code: int):
    found = Certificate(
        status=status,
        checks=(Check(name="moved", passed=status == "passed", detail="4 of 4 matrices moved"),),
        rows="training",
        num_rows=9,
        loss=1.0,
        reloaded_loss=1.0,
        base_loss=2.0,
        adapter_sha256="0" * 64,
        seconds=0.5,
    )
    api.on(f"GET /jobs/{JOB_ID}/certificate", Answer(found.model_dump(mode="json")))

    shown = lorad("certificate", JOB_ID)

    assert shown.code == code
    assert "4 of 4 matrices moved" in shown.stdout
    assert ("FAILED" in shown.stdout) == (status == "failed")
