"""What a watcher sees, and which exit code the end of a job is."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from app.cli import screens
from app.domain.jobs import Job, JobState
from app.domain.metrics import StepMetrics
from tests.cli.conftest import (
    JOB_ID,
    make_job,
    make_step,
    problem,
    sse,
    step_message,
    stream,
)


@pytest.mark.parametrize("width", [40, 120])
def test_a_terminal_shows_the_newest_measurements_and_their_course(width):
    terminal = io.StringIO()
    steps = [StepMetrics.model_validate({**make_step(n), "loss": 9.0 - n}) for n in range(1, 6)]
    job = Job.model_validate(make_job(name="\x1b[2J" + "long " * 30))
    console = Console(file=terminal, force_terminal=True, width=width, height=50, no_color=True)

    with screens.LiveScreen(console) as screen:
        screen.state(job)
        screen.note("checkpoint 4 saved \x1b[2J[bold]")
        for step in steps:
            screen.remember(step)
        screen.progress(steps[-1], total=10, eta_seconds=65.2)

    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "step 5/10   50%" in shown
    assert "ETA 1 min 05 s" in shown
    assert re.search(r"loss +4  █▇▅▃▁", shown)
    assert "learning rate" in shown
    assert width == 40 or "?[2Jlong long" in shown
    assert "saved ?[2J[bold]" in shown.replace("\n", "")
    assert "\x1b" not in shown
    assert max(cell_len(line) for line in re.split(r"[\r\n]+", shown)) <= width


def test_a_step_that_was_not_finite_says_so():
    metrics = StepMetrics.model_validate({**make_step(5), "loss": None})

    assert screens.numbers(metrics, 0).startswith("loss not finite")


def test_plain_lines_come_no_more_often_than_asked_for(capsys):
    times = iter([100.0, 101.0, 102.9, 103.0, 103.1])
    screen = screens.PlainScreen(every_seconds=3, clock=lambda: next(times))

    for step in (1, 2, 3, 4, 10):
        metrics = StepMetrics.model_validate(make_step(step))
        screen.progress(metrics, total=10, eta_seconds=1)

    printed = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert printed == ["1/10", "4/10", "10/10"]


def test_a_terminal_gets_plain_lines_where_they_are_asked_for(api, lorad, monkeypatch):
    end = sse("complete", make_job(JobState.SUCCEEDED))
    steps = [step_message(step) for step in (4, 5, 6)]
    api.on(f"GET /jobs/{JOB_ID}/stream", stream(sse("state", make_job()), *steps, end))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")

    plain = lorad("watch", JOB_ID, "--every", "1000").stderr
    live = lorad("watch", JOB_ID).stderr

    assert [line.split()[1] for line in plain.splitlines() if line.startswith("step")] == ["4/10"]
    assert "\x1b" not in plain
    assert "\x1b[?25l" in live
    assert lorad("watch", JOB_ID, "--every", "nan").code == 2


def test_an_api_that_goes_away_and_returns_is_told_and_outlived(api, lorad):
    api.on(
        f"GET /jobs/{JOB_ID}/stream",
        stream(sse("state", make_job()), step_message(4), breaks=True),
        problem(503, "starting"),
        stream(step_message(10), sse("complete", make_job(JobState.FAILED))),
    )

    done = lorad("watch", JOB_ID)

    told = done.stderr.splitlines()
    lost = next(i for i, line in enumerate(told) if "connecting again" in line)
    assert "connected again" in told[lost + 1 :]
    assert any(line.startswith("step 10/10") for line in told[lost:])
    assert done.code == 100


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

    assert "step 4/10  loss 2.5  grad 1  lr 0.001  200 tok/s  1.0 kB  ETA 0:03" in done.stderr


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
