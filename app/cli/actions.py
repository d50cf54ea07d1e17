"""What the job commands do beyond one request: submit with a file, watch, wait, read logs."""

import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.cli import local, output, screens, specs, watch
from app.cli.client import Client
from app.cli.exits import ExitCode
from app.domain.checkpoints import hash_file
from app.domain.datasets import Dataset, OnBadRows
from app.domain.errors import InvalidInput, LoradError
from app.domain.jobs import Job, JobState
from app.domain.plans import Plan

connect = Client.from_environment
_LOG_SECONDS = 0.5
_MOST_DIGITS = 18


class _DeadlinePassed(Exception):
    pass


def dry_run(source: str, overrides: list[str], mode: output.Mode) -> None:
    """Check a job file without an API and print the job with every default filled in."""
    with placed(source, overrides):
        spec = specs.read(source, overrides)
        if specs.dataset_path(spec) is not None:
            spec = specs.with_dataset(spec, specs.PLACEHOLDER_DATASET)
        checked = specs.validate(spec)
    if mode is not output.Mode.ID:
        output.show_json(checked)
    if not (local.settings().models_folder / checked.base_model / "config.json").is_file():
        output.warn(
            f"this machine's home has no base model {checked.base_model}; where the job"
            " runs it has to be there (`lorad models add`)"
        )
    output.say("the job file is valid; nothing was sent")


def submit(client: Client, source: str, overrides: list[str]) -> Job:
    """Send a job file; its data set is uploaded first unless the API has that very file."""
    with placed(source, overrides):
        return client.submit(with_data(client, source, overrides))


def plan(client: Client, source: str, overrides: list[str]) -> Plan:
    """Let a worker say what the job of a file would do and need."""
    with placed(source, overrides):
        return client.plan(with_data(client, source, overrides))


@contextmanager
def placed(source: str, overrides: list[str]) -> Generator[None]:
    """Add to an error about a key where the job file, or the command line, has that key."""
    try:
        yield
    except LoradError as error:
        place = specs.place_of(source, overrides, error.param)
        if place is not None:
            error.add_note(f"where: {place}")
        raise


def with_data(client: Client, source: str, overrides: list[str]) -> dict[str, Any]:
    """Read a job file and upload its data set, unless the API has that very file."""
    spec = specs.read(source, overrides)
    path = specs.dataset_path(spec)
    if path is not None:
        # Faults of the file are found before a long upload, not after it.
        specs.validate(specs.with_dataset(spec, specs.PLACEHOLDER_DATASET))
        spec = specs.with_dataset(spec, _upload_once(client, path).id)
    return spec


@dataclass(frozen=True)
class PreviewSource:
    """What a preview shows: which rows, for which model, read how."""

    dataset_id: str
    base_model: str
    options: dict[str, Any]
    field_mapping: dict[str, str] | None


def rows_to_preview(
    client: Client, source: str, overrides: list[str], *, base_model: str | None
) -> PreviewSource:
    """Find the rows of a preview: those of a data set, or of a job file, which is uploaded.

    Raises:
        InvalidInput: No model is named, or the job file is none.
    """
    if Path(source).is_file():
        with placed(source, overrides):
            spec = specs.validate(with_data(client, source, overrides))
    else:
        given: dict[str, Any] = {"dataset": {"id": specs.PLACEHOLDER_DATASET}}
        specs.override(given, overrides)
        given["base_model"] = base_model or given.get("base_model")
        if given["base_model"] is None:
            raise InvalidInput("say which model is to see the rows", param="--base-model")
        with placed("-", overrides):
            spec = specs.validate(given)
    dataset = spec.dataset
    options = dataset.model_dump(
        include={"max_length", "format", "chat_template", "train_on_inputs", "on_too_long"},
        exclude_defaults=True,
    )
    is_file = Path(source).is_file()
    return PreviewSource(
        dataset.id if is_file else source,
        base_model or spec.base_model,
        options,
        dataset.field_mapping,
    )


def upload(
    client: Client, file: Path, *, name: str | None, on_bad_rows: OnBadRows = "refuse"
) -> Dataset:
    """Upload a data set.

    Raises:
        InvalidInput: There is no such file.
    """
    if not file.is_file():
        raise InvalidInput(f"there is no file {file}", param="FILE")
    return client.upload(file, name=name, on_bad_rows=on_bad_rows)


def watch_job(
    client: Client, job_id: str, *, timeout: float | None, every_seconds: float | None = None
) -> ExitCode:
    """Show a job live until it ends or is paused; Ctrl-C leaves it running.

    Args:
        client: Connection to the API.
        job_id: The job.
        timeout: Seconds after which to give up; None waits for ever.
        every_seconds: Print a plain line at most so often instead of a live view.
    """
    try:
        with screens.screen(every_seconds=every_seconds) as screen, _deadline(timeout):
            job = watch.follow(client, job_id, screen, until_paused=True)
    except _DeadlinePassed:
        output.say(f"{timeout:g} s are over; {job_id} goes on. Come back: lorad watch {job_id}")
        return ExitCode.TIMED_OUT
    except KeyboardInterrupt:
        output.say(f"detached; {job_id} goes on. Come back: lorad watch {job_id}")
        return ExitCode.OK
    _advise(job)
    return _outcome(job)


def wait_for(client: Client, job_id: str, *, timeout: float | None) -> ExitCode:
    """Wait until a job ends, a pause included, and say only how it did."""
    try:
        with screens.Silent() as screen, _deadline(timeout):
            job = watch.follow(client, job_id, screen, until_paused=False)
    except _DeadlinePassed:
        output.say(f"{timeout:g} s are over; {job_id} has not ended")
        return ExitCode.TIMED_OUT
    output.say(watch.describe(job))
    return _outcome(job)


def print_logs(client: Client, job_id: str, *, attempt: int | None, follow: bool) -> None:
    """Print the trainer's log; when following, until the job has ended."""
    offset, is_over = 0, False
    while True:
        text, offset = client.logs(job_id, offset=offset, attempt=attempt)
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        if text:
            continue
        if is_over or not follow:
            return
        # One more look after the end was seen: the last lines may have come in between.
        is_over = client.job(job_id).is_terminal
        time.sleep(0 if is_over else _LOG_SECONDS)


def download(client: Client, job_id: str, checkpoint: str, *, to: Path | None) -> Path:
    """Save an adapter as a zip file.

    Raises:
        InvalidInput: The file exists already, or its folder does not.
    """
    target = to or Path(f"{Path(job_id).name}-{Path(checkpoint).name}.zip")
    if target.exists() or not target.absolute().parent.is_dir():
        problem = "exists already" if target.exists() else "is in a folder that does not exist"
        raise InvalidInput(f"{target} {problem}; choose another with --to", param="--to")
    client.download(job_id, checkpoint, target)
    return target


def number_or_name(text: str) -> int | str:
    """Read a checkpoint as the API takes it: steps are numbers, the rest names or ids."""
    # What has more digits is no step either, and the API says so.
    is_number = text.isascii() and text.isdecimal() and len(text) < _MOST_DIGITS
    return int(text) if is_number else text


def training_overrides(overrides: list[str]) -> dict[str, Any]:
    """Read `--set training.key=value` pairs of a resume; `training.` may be left out.

    Raises:
        InvalidInput: A pair is not about training.
    """
    values = specs.read_overrides([item.removeprefix("training.") for item in overrides])
    for key, value in values.items():
        if isinstance(value, dict):
            raise InvalidInput(f"--set {key}: only keys of training may change", param="--set")
    return values


def _upload_once(client: Client, path: Path) -> Dataset:
    sha256 = hash_file(path)
    for dataset in client.datasets():
        if dataset.sha256 == sha256:
            output.say(f"data set {dataset.id} is this very file; using it")
            return dataset
    dataset = client.upload(path)
    output.say(f"uploaded {path.name} as {dataset.id} ({dataset.num_rows} rows)")
    if dataset.ignored_keys:
        output.say(f"keys of its rows that change nothing: {', '.join(dataset.ignored_keys)}")
    return dataset


def _advise(job: Job) -> None:
    told = watch.summary(job)
    if told is not None:
        output.say(told)
    if job.state == JobState.PAUSED:
        output.say(f"it goes on with: lorad resume {job.id} --watch")
    elif job.state == JobState.SUCCEEDED:
        output.say(f"get the adapter with: lorad download {job.id}")
    else:
        output.say(f"look closer with: lorad logs {job.id}")


def _outcome(job: Job) -> ExitCode:
    match job.state:
        case JobState.FAILED:
            return ExitCode.JOB_FAILED
        case JobState.CANCELLED:
            return ExitCode.JOB_CANCELLED
        case _:
            return ExitCode.OK


@contextmanager
def _deadline(seconds: float | None) -> Generator[None]:
    """Raise _DeadlinePassed in the block after `seconds`; an alarm, because reads block."""

    def expire(*_: object) -> None:
        raise _DeadlinePassed

    if seconds is None:
        yield
        return
    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
