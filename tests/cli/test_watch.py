"""What a watcher sees, and which exit code the end of a job is."""

import io

import pytest
from rich.console import Console

from app.cli import watch
from app.domain.jobs import JobState
from app.domain.metrics import StepMetrics
from tests.cli.conftest import JOB_ID, make_job, make_step, sse, step_message, stream


def test_a_terminal_shows_a_bar_with_the_newest_measurements():
    terminal = io.StringIO()
    metrics = StepMetrics.model_validate(make_step(5))

    with watch.BarScreen(Console(file=terminal, force_terminal=True, width=120)) as screen:
        screen.note("checkpoint 4 saved \x1b[2J[bold]")
        screen.progress(metrics, total=10, eta_seconds=65.2)

    shown = terminal.getvalue()
    assert "5/10" in shown
    assert "loss 2.5  grad 1  200 tok/s  ETA 1:05" in shown
    assert "saved ?[2J[bold]" in shown


def test_a_step_that_was_not_finite_says_so():
    metrics = StepMetrics.model_validate({**make_step(5), "loss": None})

    assert watch.numbers(metrics, 0).startswith("loss not finite")


@pytest.mark.parametrize("command", ["watch", "wait"])
@pytest.mark.parametrize(
    ("state", "code"),
    [(JobState.SUCCEEDED, 0), (JobState.FAILED, 100), (JobState.CANCELLED, 103)],
)
def test_the_end_of_a_job_is_the_exit_code(api, lorad, command, state, code):
    error = {"code": "x", "message": "it broke"} if state is JobState.FAILED else None
    end = sse("complete", make_job(state, error=error))
    api.on(f"GET /jobs/{JOB_ID}/stream", stream(sse("state", make_job()), step_message(4), end))

    done = lorad(command, JOB_ID)

    assert done.code == code
    assert done.stdout == ""
    verb = "is" if state is JobState.CANCELLED else "has"
    assert f"{verb} {state}" in done.stderr
    assert ("it broke" in done.stderr) is (error is not None)


def test_watch_shows_the_measurements(api, lorad):
    end = sse("complete", make_job(JobState.SUCCEEDED))
    api.on(f"GET /jobs/{JOB_ID}/stream", stream(sse("state", make_job()), step_message(4), end))

    done = lorad("watch", JOB_ID)

    assert "step 4/10  loss 2.5  grad 1  200 tok/s  ETA 0:03" in done.stderr


def test_a_late_watcher_sees_the_newest_step_only(api, lorad):
    end = sse("complete", make_job(JobState.SUCCEEDED))
    steps = [step_message(step) for step in (1, 2, 3)]
    api.on(f"GET /jobs/{JOB_ID}/stream", stream(*steps, sse("state", make_job()), end))

    done = lorad("watch", JOB_ID)

    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("step")] == [
        "3/10"
    ]


def test_watch_leaves_a_paused_job(api, lorad):
    paused = sse("state", make_job(JobState.PAUSED, state_reason="pause"))
    api.on(f"GET /jobs/{JOB_ID}/stream", stream(paused))

    done = lorad("watch", JOB_ID)

    assert done.code == 0
    assert f"lorad resume {JOB_ID}" in done.stderr


@pytest.mark.parametrize("command", ["watch", "wait"])
def test_a_timeout_is_code_124(api, lorad, command):
    api.on(f"GET /jobs/{JOB_ID}/stream", stream(sse("state", make_job())))

    done = lorad(command, JOB_ID, "--timeout", "0.3")

    assert done.code == 124


def test_ctrl_c_detaches(api, lorad, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("app.cli.watch.follow", interrupt)

    done = lorad("watch", JOB_ID)

    assert done.code == 0
    assert f"lorad watch {JOB_ID}" in done.stderr
