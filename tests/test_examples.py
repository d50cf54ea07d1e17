"""The examples run as they are, against the service."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli.client import Client
from examples import demo
from tests.fixtures.stack import Stack, link_model

pytestmark = pytest.mark.services

EXAMPLES = Path(__file__).parent.parent / "examples"
# Twelve steps take long enough to be paused in.
SLOW = {"LORAD_FAILPOINTS": "trainer.step=sleep:0.1"}


def test_the_openai_walk_runs_with_a_base_url_and_a_key_only(
    make_stack: Callable[..., Stack], tiny_llama: Path
):
    stack = make_stack(**SLOW)
    link_model(stack.home, tiny_llama, "smollm2-135m-instruct")
    url = f"http://127.0.0.1:{stack.port}/v1"

    walk = subprocess.run(
        [sys.executable, str(EXAMPLES / "openai_sdk.py")],
        env={"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert walk.returncode == 0, walk.stdout + walk.stderr
    (job,) = stack.http.get("/jobs").json()["data"]
    assert (job["state"], job["step"]) == ("succeeded", 12)
    assert "is paused; it goes on from its newest checkpoint" in walk.stdout
    assert "step,train_loss,train_accuracy" in walk.stdout
    assert "\n12," in walk.stdout
    said = [line.partition(": ")[0] for line in walk.stdout.splitlines()]
    assert "smollm2-135m-instruct" in said
    assert any(name.startswith("ft:smollm2-135m-instruct:") for name in said)


def test_the_demo_pauses_its_job_and_goes_on_from_a_checkpoint(
    make_stack: Callable[..., Stack], tiny_llama: Path, capsys: pytest.CaptureFixture[str]
):
    stack = make_stack(**SLOW)
    link_model(stack.home, tiny_llama, demo.MODEL)

    with Client(f"http://127.0.0.1:{stack.port}") as client:
        job = demo.train(client)
        demo.summarize(client, job, stack.home)

    assert (job.state, job.step, job.attempt) == ("succeeded", job.total_steps, 2)
    told = capsys.readouterr()
    assert "state paused" in told.out
    assert f"{job.total_steps} in" in told.out
    assert f"POST /jobs/{job.id}/pause" in told.err
