"""The oracle: I1 to I10, each a function that returns what is violated, in words.

The promises are those of the design's states, leases and files: nothing accepted is lost, effects
are exactly once, and what is resumed ends as if it had never stopped.
"""

import json
from collections import Counter
from collections.abc import Callable

from app.domain import checkpoints
from app.domain.checkpoints import BadCheckpoint
from app.domain.jobs import TERMINAL_STATES, TRANSITIONS
from app.domain.runs import checkpoint_folder
from tests.chaos.harness.evidence import Evidence, JobEvidence, Row

Check = Callable[[JobEvidence], list[str]]
_PAIRS = {(source.value, target.value) for source, target, _ in TRANSITIONS}
_TERMINAL = {state.value for state in TERMINAL_STATES}


def violations(evidence: Evidence) -> dict[str, list[str]]:
    """Apply every check to every job; an invariant that holds is not in the answer."""
    found = {
        name: [line for job in evidence.jobs for line in check(job)]
        for name, check in CHECKS.items()
    }
    found["I1"] += [f"the upload {each} is not there as it was" for each in evidence.broken_uploads]
    found["I2"] += [
        f"{each} is there and was accepted by nobody: a request was done twice"
        for each in evidence.unaccepted
    ]
    found["I9"] = [*evidence.samples, *evidence.leftovers]
    return {name: lines for name, lines in found.items() if lines}


def lost(job: JobEvidence) -> list[str]:
    """I1: an accepted job ends, and ends well unless its user wished otherwise."""
    if job.job is None:
        return [f"{job.job_id} was accepted and has no row"]
    if job.state not in (*_TERMINAL, "paused"):
        return [f"{job.job_id} is stuck in {job.state}"]
    expected = {"succeeded"}
    if "cancel" in job.accepted.asked:
        expected.add("cancelled")
    if job.accepted.asked and job.accepted.asked[-1] == "pause":
        expected.add("paused")
    if job.state not in expected:
        reason = job.job["state_reason"]
        return [f"{job.job_id} ended {job.state} ({reason}) and not {sorted(expected)}"]
    return []


def stale_writes(job: JobEvidence) -> list[str]:
    """I2: nothing of a lower fence is accepted once a higher one exists, but by adoption."""
    found = [
        f"{job.job_id}: a row of {row['what']} under fence {row['fence']} was accepted while the"
        f" job had fence {row['current_fence']}"
        for row in job.journal
        if row["what"] != "state" and row["fence"] < row["current_fence"] and not row["is_adopted"]
    ]
    fences = [row["fence"] for row in job.attempts]
    if fences != sorted(set(fences)):
        found.append(f"{job.job_id}: fences of its attempts are {fences}")
    if any(row["current_fence"] < row["fence"] for row in job.journal if row["what"] == "state"):
        found.append(f"{job.job_id}: its fence went down")
    return found


def illegal_moves(job: JobEvidence) -> list[str]:
    """I3: each change of state is in the table, and is told exactly once."""
    moved = [
        (row["old_state"], row["new_state"])
        for row in job.journal
        if row["what"] == "state" and row["old_state"] != row["new_state"]
    ]
    told = [
        (row["from_state"], row["to_state"])
        for row in job.job_events
        if row["to_state"] is not None and row["from_state"] is not None
    ]
    found = [f"{job.job_id} went from {a} to {b}" for a, b in moved if (a, b) not in _PAIRS]
    if moved != told:
        found.append(f"{job.job_id} moved {moved} and its events tell {told}")
    return found


def reopened(job: JobEvidence) -> list[str]:
    """I4: a terminal state is left only because a user asked for it."""
    return [
        f"{job.job_id} left {row['from_state']} for {row['to_state']}: {row['message']}"
        for row in job.job_events
        if row["from_state"] in _TERMINAL
        and not (row["to_state"] == "queued" and row["message"].startswith("resume from step"))
    ]


def unverified(job: JobEvidence) -> list[str]:
    """I5: a committed checkpoint verifies byte for byte."""
    found: list[str] = []
    for row in job.checkpoints:
        if row["status"] != "committed":
            continue
        if problem := _problem(job, row):
            found.append(f"{job.job_id}: checkpoint {row['step']} is committed, but {problem}")
    return found


def bad_starts(job: JobEvidence) -> list[str]:
    """I5: an attempt starts from the newest checkpoint that was committed before it.

    Only where no checkpoint was damaged and no user chose another one.
    """
    if "resume" in job.accepted.asked or any(row["status"] == "corrupt" for row in job.checkpoints):
        return []
    saved = [
        (row["attempt"], _step_of(row)) for row in job.job_events if row["type"] == "checkpoint"
    ]
    found: list[str] = []
    for row in job.attempts:
        newest = max((step for attempt, step in saved if attempt < row["attempt"]), default=0)
        if row["start_step"] is not None and row["start_step"] != newest:
            found.append(
                f"{job.job_id}: attempt {row['attempt']} started at step {row['start_step']}, and"
                f" the newest checkpoint before it was {newest}"
            )
    return found


def metric_gaps(job: JobEvidence) -> list[str]:
    """I6: after success there is exactly one effective row per step, with the golden loss."""
    if job.state != "succeeded":
        return []
    work = job.accepted.work
    counts = Counter(metric.step for metric in job.metrics)
    wanted = set(range(1, work.num_steps + 1))
    found = [
        f"{job.job_id}: {what} metric rows of steps {sorted(steps)}"
        for what, steps in (
            ("no", wanted - set(counts)),
            ("doubled", {step for step, count in counts.items() if count > 1}),
            ("unexpected", set(counts) - wanted),
        )
        if steps
    ]
    losses = work.golden.losses
    wrong = [m.step for m in job.metrics if m.step in wanted and m.loss != losses[m.step - 1]]
    if wrong:
        found.append(f"{job.job_id}: losses of steps {wrong} are not the golden ones")
    if job.job is not None and job.job["replay_mismatches"]:
        found.append(f"{job.job_id}: {job.job['replay_mismatches']} replayed steps differ")
    return found


def no_checkpoint(job: JobEvidence) -> list[str]:
    """I7: from the first commit on there is at least one checkpoint that verifies."""
    if not any(row["type"] == "checkpoint" for row in job.job_events):
        return []
    good = [
        row
        for row in job.checkpoints
        if row["status"] == "committed" and _problem(job, row) is None
    ]
    return [] if good else [f"{job.job_id} had checkpoints and has none that verifies"]


def other_adapter(job: JobEvidence) -> list[str]:
    """I8: the final adapter is, bit for bit, that of the run that nothing interrupted."""
    if job.state != "succeeded" or job.adapter_sha256 == job.accepted.work.golden.adapter_sha256:
        return []
    return [f"{job.job_id}: its final adapter ({job.adapter_sha256}) is not the golden one"]


def ignored_cancels(job: JobEvidence) -> list[str]:
    """I10: a cancel that was accepted ends in cancelled, unless it had succeeded before."""
    asked = job.accepted.asked
    if not asked or asked[-1] != "cancel" or job.state in ("cancelled", "succeeded"):
        return []
    return [f"{job.job_id} was cancelled and is {job.state}"]


CHECKS: dict[str, Check] = {
    "I1": lost,
    "I2": stale_writes,
    "I3": illegal_moves,
    "I4": reopened,
    "I5": lambda job: [*unverified(job), *bad_starts(job)],
    "I6": metric_gaps,
    "I7": no_checkpoint,
    "I8": other_adapter,
    "I10": ignored_cancels,
}


def several_starts(job: JobEvidence) -> list[str]:
    """Say when an outage that must not cost an attempt cost one."""
    num = len(job.attempts)
    return [] if num <= 1 else [f"{job.job_id} needed {num} attempts"]


def several_ends(job: JobEvidence) -> list[str]:
    """Say when a job reached more than one terminal state without being reopened."""
    ends = [row["to_state"] for row in job.job_events if row["to_state"] in _TERMINAL]
    reopenings = job.accepted.asked.count("resume")
    return [f"{job.job_id} ended {ends}"] if len(ends) > 1 + reopenings else []


def _problem(job: JobEvidence, row: Row) -> str | None:
    folder = checkpoint_folder(job.home, job.job_id, row["attempt"], row["step"])
    try:
        manifest = checkpoints.verify(folder, manifest_sha256=row["manifest_sha256"])
    except (BadCheckpoint, OSError) as error:
        return str(error)
    if (manifest.job_id, manifest.step) != (job.job_id, row["step"]):
        return f"its manifest is of {manifest.job_id}, step {manifest.step}"
    return None


def _step_of(row: Row) -> int:
    data = json.loads(row["data"]) if isinstance(row["data"], str) else row["data"]
    return int(data["step"])


def crashes(job: JobEvidence) -> list[str]:
    """Say when a job that should only have been given back was counted as crashed."""
    return [
        f"{job.job_id} went back in the queue: {row['message']}"
        for row in job.job_events
        if row["to_state"] == "queued"
        and row["from_state"] is not None
        and not row["message"].startswith(("drain done", "resume from step"))
    ]
