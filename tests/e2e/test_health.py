"""Gradient flow, skipped steps and the certificate, over HTTP and on the command line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.rows import ROWS, spec
from tests.fixtures.stack import Stack
from tests.worker.training.poison import poisoned

pytestmark = pytest.mark.services
ANSWER = {"role": "assistant", "content": "Goethe."}


def lorad(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    url = {"LORAD_API_URL": f"http://127.0.0.1:{stack.port}"}
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", *arguments],
        env={**stack.environment, **url},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_measured_of_a_job_s_health_can_be_asked_for(
    make_stack: Callable[..., Stack], tiny_llama: Path, tmp_path: Path
):
    stack = make_stack()
    odd = {"messages": [{"role": "user", "content": "Faust?"}, ANSWER]}
    rows = [*ROWS[:11], odd, *ROWS[12:]]
    wanted = spec(stack, stack.upload(rows), max_steps=12, logging_steps=100)
    (link,) = (stack.home / "models").iterdir()
    link.unlink()
    (stack.home / "models" / link.name).symlink_to(
        poisoned(tiny_llama, tmp_path / "model", row=odd, rows=rows)
    )
    job_id = stack.submit({**wanted, "monitoring": {"on_nonfinite": "skip"}})
    failing = stack.submit(wanted)

    job = stack.wait_for_state(job_id, "succeeded", seconds=90)

    assert job["skipped_steps"] == 1
    (skipped,) = (e for e in stack.events(job_id) if e["type"] == "nonfinite_skipped")
    assert 12 in skipped["data"]["lines"]
    assert [m["loss"] is None for m in stack.metrics(job_id)].count(True) == 1
    tables = stack.http.get(f"/jobs/{job_id}/gradient-flow").json()["data"]
    assert [table["step"] for table in tables] == [1, 2, 3]
    assert {m["matrix"] for m in tables[0]["matrices"]} == {"A", "B"}
    found = stack.http.get(f"/jobs/{job_id}/certificate").json()
    assert (found["status"], len(found["checks"])) == ("passed", 6)

    shown = lorad(stack, "gradient-flow", job_id, "--step", "3")
    assert shown.returncode == 0, shown.stderr
    assert "self_attn.q_proj" in shown.stdout
    told = lorad(stack, "certificate", job_id)
    assert "loss_reproduced" in told.stdout

    failed = stack.wait_for_state(failing, "failed", seconds=60)
    assert failed["error"]["code"] == "nonfinite_step"
    assert (failed["skipped_steps"], failed["attempt"]) == (0, 1)
    assert "no certificate yet" in lorad(stack, "certificate", failing).stderr
