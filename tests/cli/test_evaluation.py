"""Evaluations and replays as the command line shows them."""

import pytest

from app.domain.jobs import JobState
from tests.cli.conftest import JOB_ID, NOW, Answer, listing, make_job, sse, stream

EVALUATION = {
    "step": 10,
    "epoch": 0.5,
    "eval_loss": 1.25,
    "token_accuracy": 0.625,
    "num_rows": 3,
    "num_target_tokens": 30,
    "is_best": True,
    "num_since_best": 0,
    "seconds": 0.5,
}


def verification(*, loss: float, state: str | None = None) -> Answer:
    identical = loss == 1.5 and state in (None, "a")
    compared = None
    if state is not None:
        hashes = {"recorded_tensors_sha256": "a", "replayed_tensors_sha256": state}
        compared = {"step": 11, **hashes, "identical": state == "a"}
    step = {
        "step": 11,
        "recorded_loss": 1.5,
        "replayed_loss": loss,
        "recorded_grad_norm": 0.1,
        "replayed_grad_norm": 0.1,
        "identical": loss == 1.5,
    }
    return Answer(
        {
            "object": "resume_verification",
            "job_id": JOB_ID,
            "checkpoint_id": "ckpt-1",
            "checkpoint_step": 10,
            "attempt": 1,
            "steps": [step],
            "largest_absolute_difference": abs(loss - 1.5),
            "largest_relative_difference": abs(loss - 1.5) / 1.5,
            "next_checkpoint": compared,
            "identical": identical,
            "notices": ["num_threads 1 -> 2: the run continues, but not to the last bit"],
            "seconds": 1.0,
        }
    )


def test_evaluations_are_listed_page_by_page(api, lorad):
    later = {**EVALUATION, "step": 20, "is_best": False, "num_since_best": 1, "eval_loss": None}
    route = f"GET /jobs/{JOB_ID}/evaluations"
    api.on(route, listing(EVALUATION, has_more=True), listing(later))

    done = lorad("evaluations", JOB_ID)

    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1] == ["10", "0.5", "1.25", "62.5%", "yes", "0", "30", "0.5"]
    assert rows[2][:6] == ["20", "0.5", "-", "62.5%", "-", "1"]
    assert "after_step=10" in api.requests[1].query


def test_watch_shows_evaluations(api, lorad):
    event = {"seq": 1, "at": NOW.isoformat(), "kind": "evaluation", "step": 10}
    message = sse("evaluation", {**event, "evaluation": EVALUATION}, event_id="1-1")
    end = sse("complete", make_job(JobState.SUCCEEDED))
    api.on(f"GET /jobs/{JOB_ID}/stream", stream(sse("state", make_job()), message, end))

    done = lorad("watch", JOB_ID)

    shown = "evaluation at step 10: loss 1.25, 62.5% of the tokens right (the best so far)"
    assert shown in done.stderr


@pytest.mark.parametrize(
    ("loss", "state", "code", "said"),
    [
        (1.5, None, 0, "identical to the last bit from checkpoint 10 on\n"),
        (1.5, "a", 0, "; the whole state is that of checkpoint 11\n"),
        (1.5, "b", 104, "; the whole state is NOT that of checkpoint 11\n"),
        (1.5000000000000002, None, 104, "differences up to 2.22e-16 (1.48e-16 relative)\n"),
    ],
)
def test_a_replay_is_shown_with_every_digit_and_its_outcome_is_the_exit_code(
    api, lorad, loss, state, code, said
):
    api.on(f"POST /jobs/{JOB_ID}/verify-resume", verification(loss=loss, state=state))

    done = lorad("verify-resume", JOB_ID, "--checkpoint", "10", "--steps", "1")

    assert api.requests[0].json == {"checkpoint": 10, "steps": 1}
    assert done.code == code
    assert done.stdout.splitlines()[1].split()[:3] == ["11", "1.5", repr(loss)]
    assert done.stderr.endswith(said)
    assert "num_threads 1 -> 2" in done.stderr


def test_best_is_sent_as_it_is(api, lorad):
    api.on(f"POST /jobs/{JOB_ID}/resume", Answer(make_job(JobState.QUEUED)))

    lorad("resume", JOB_ID, "--from", "best")

    assert api.requests[0].json == {"checkpoint": "best"}


def test_a_job_shows_its_best_step_and_what_was_replayed(api, lorad):
    values = {"best_step": 10, "best_eval_loss": 1.25, "replayed_steps": 4, "replay_mismatches": 1}
    api.on(f"GET /jobs/{JOB_ID}", Answer(make_job(**values)))

    done = lorad("show", JOB_ID)

    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert lines["best"] == "1.25 at step 10"
    assert lines["replayed"] == "4 steps, 1 different"
