"""What a job should be after each thing that can happen to it, told without the product."""

from dataclasses import dataclass, field
from pathlib import Path

from app.domain.events import FinishedEvent, TrainerEvent
from app.domain.jobs import OWNED_STATES, TERMINAL_STATES, Desired, JobState
from app.domain.runs import EVENTS_FILE
from app.services.runs import Claimed
from tests.services.driver import TOTAL_STEPS, Driver

S = JobState
PAUSABLE = (S.STARTING, S.RUNNING)
MAX_CRASHES = 3


@dataclass
class Attempt:
    """One worker's try at a job."""

    run: Claimed
    step: int = 0
    has_begun: bool = False
    is_dead: bool = False
    """Its worker was killed; only a reconciler can go on with its job."""
    finished: FinishedEvent | None = None
    unstored: list[int] = field(default_factory=list)
    """Steps that are in its file and in no row."""
    unstored_save: int | None = None


@dataclass
class Expected:
    """A job as its user would tell its story."""

    total_steps: int = TOTAL_STEPS
    limit: int | None = None
    state: JobState = S.QUEUED
    reason: str | None = None
    desired: Desired = Desired.RUN
    fence: int = 0
    crashes: int = 0
    waits: bool = False
    """Its back-off has not passed."""
    last_step: int = 0
    saved: dict[int, Path] = field(default_factory=dict)
    """Checkpoints of the current branch that are not known to be corrupt, by step."""
    known_bad: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    """Steps of the current branch whose checkpoint its user wants to keep."""
    evaluations: dict[int, float | None] = field(default_factory=dict)
    """Losses of the evaluations on the current branch, by step."""
    scores: dict[int, float] = field(default_factory=dict)
    """Evaluation losses of its checkpoints, by step."""
    broken: set[Path] = field(default_factory=set)
    """Folders whose files were changed behind the back of the product."""
    wanted: int | None = None
    attempt: Attempt | None = None
    lost: list[Attempt] = field(default_factory=list)
    """Attempts that were given up with lines that nobody stored."""
    is_fresh: bool = False
    """It was resumed at step 0, whatever there was."""

    @property
    def is_owned(self) -> bool:
        return self.state in OWNED_STATES

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_STATES

    def pick(self, up_to: int | None = None) -> int | None:
        """Return the furthest good checkpoint; broken ones are known as such from then on."""
        for step in sorted(self.saved, reverse=True):
            if up_to is not None and step > up_to:
                continue
            if self.saved[step] not in self.broken:
                return step
            self.find_bad(step)
        return None

    def find_bad(self, step: int) -> None:
        del self.saved[step]
        self.known_bad.add(step)

    def save(self, step: int, folder: Path, score: float | None = None) -> None:
        self.saved[step] = folder
        if score is not None:
            self.scores[step] = score
        self.crashes = 0

    @property
    def best_evaluation(self) -> tuple[int, float] | None:
        """Step and loss of the first of the lowest evaluations."""
        found = [(loss, step) for step, loss in self.evaluations.items() if loss is not None]
        return (min(found)[1], min(found)[0]) if found else None

    @property
    def best(self) -> int | None:
        """Step of the checkpoint that its user gets as `best`."""
        scored = [(self.scores[step], step) for step in self.saved if step in self.scores]
        return min(scored)[1] if scored else None

    def is_deletable(self, step: int) -> bool:
        """Tell whether nothing needs the checkpoint of a step."""
        is_last_good = not self.is_terminal and step == max(self.saved, default=None)
        return not (is_last_good or step == self.wanted or step in self.pinned)

    def delete(self, step: int) -> None:
        self.saved.pop(step, None)
        self.known_bad.discard(step)
        self.scores.pop(step, None)

    def retire(self) -> None:
        """Keep as many as the limit says: the best, and the newest; those pinned do not count."""
        if self.limit is None:
            return
        best = self.best
        unpinned = sorted(set(self.saved) - self.pinned, reverse=True)
        kept = unpinned[: self.limit]
        if best in unpinned and best not in kept:
            kept = [*kept[:-1], best]
        for step in set(unpinned) - set(kept):
            self.delete(step)

    def cut(self, step: int) -> None:
        """Leave behind what is past a step."""
        self.last_step = min(self.last_step, step)
        self.pinned = {each for each in self.pinned if each <= step}
        self.evaluations = {at: loss for at, loss in self.evaluations.items() if at <= step}
        self.scores = {at: loss for at, loss in self.scores.items() if at <= step}
        self.saved = {each: path for each, path in self.saved.items() if each <= step}
        self.known_bad = {each for each in self.known_bad if each <= step}

    def store(self, attempt: Attempt, folder: Path) -> None:
        """Take in what an attempt left in its file."""
        if attempt.unstored:
            self.last_step = attempt.unstored[-1]
        if attempt.unstored_save is not None:
            self.save(attempt.unstored_save, folder)
        attempt.unstored, attempt.unstored_save = [], None

    def requeue(self, step: int | None) -> None:
        """Let a resume from a step have been accepted."""
        self.state, self.reason, self.desired = S.QUEUED, None, Desired.RUN
        self.crashes, self.waits = 0, False
        self.wanted, self.is_fresh = step, step is None
        self.cut(step or 0)

    def settle(self, state: JobState, *, reason: str | None = None) -> None:
        """Let the attempt have ended; what the user asked for while it ran decides."""
        assert self.is_owned
        self.state, self.reason, self.attempt = state, reason, None

    def end_as_wished(self) -> bool:
        if self.desired is Desired.RUN:
            return False
        self.settle(S.CANCELLED if self.desired is Desired.CANCEL else S.PAUSED)
        return True

    def crash(self) -> None:
        """Let the trainer or its worker have died."""
        if self.end_as_wished():
            return
        self.crashes += 1
        if self.crashes >= MAX_CRASHES:
            self.settle(S.FAILED)
            return
        self.waits = self.crashes > 1
        self.settle(S.QUEUED)

    def give_back(self) -> None:
        """Let it have found its device held; that is no fault of its own."""
        if not self.end_as_wished():
            self.waits = True
            self.settle(S.QUEUED)

    def reap(self) -> None:
        """Let a reconciler have found that nobody renews the lease."""
        if self.desired is Desired.RUN and self.state is S.STOPPING:
            is_full = self.reason == "disk_full"
            self.settle(S.PAUSED if is_full else S.QUEUED, reason=self.reason if is_full else None)
            return
        streak = self.crashes
        self.crash()
        if self.state is S.FAILED:
            self.crashes = streak  # a reconciler that fails a job leaves the count as it was


class FilingDriver(Driver):
    """A driver whose trainer writes its lines to a file first, as a real one does."""

    _only_files = False

    def record(self, run: Claimed, *events: TrainerEvent) -> None:
        self.file(run, *events)
        if not self._only_files:
            super().record(run, *events)

    def file_checkpoint(self, run: Claimed, step: int) -> None:
        """Write a checkpoint, and its line to the file only."""
        self._only_files = True
        try:
            self.checkpoint(run, step)
        finally:
            self._only_files = False

    def file(self, run: Claimed, *events: TrainerEvent) -> None:
        folder = self.attempt(run)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / EVENTS_FILE).open("a") as file:
            file.writelines(event.model_dump_json() + "\n" for event in events)
