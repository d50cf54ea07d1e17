"""Warnings of a plan: settings that are allowed and hardly meant."""

from collections.abc import Iterator

from app.domain.plans import Warned, Work
from app.domain.spec import JobSpec
from worker.training import optim
from worker.training.data import TrainingData


def of(spec: JobSpec, work: Work, rows: TrainingData) -> tuple[Warned, ...]:
    """Return what the user should look at before submitting."""
    return (*_of_steps(spec, work), *_of_rows(spec, work, rows))


def _of_steps(spec: JobSpec, work: Work) -> Iterator[Warned]:
    training = spec.training
    schedule = optim.make_schedule(training, total_steps=work.steps)
    if not any(schedule.learning_rate(step) > 0 for step in range(1, min(work.steps, 10_000) + 1)):
        yield Warned(
            code="nothing_learned",
            message=f"warm-up takes {schedule.num_warmup_steps} of {work.steps} steps and starts at"
            " learning rate 0: no update would change anything; lower warmup_steps or train longer",
            param="training.warmup_steps",
        )
    if training.max_steps is None and training.num_train_epochs < 1 / work.steps_per_epoch:
        yield Warned(
            code="less_than_a_step",
            message=f"{training.num_train_epochs:g} epochs are less than one of the"
            f" {work.steps_per_epoch} steps of an epoch; one step is done",
            param="training.num_train_epochs",
        )
    for name in ("save_steps", "eval_steps"):
        every = getattr(training, name)
        if every is not None and every > work.steps:
            yield Warned(
                code=f"{name}_beyond_the_end",
                message=f"{name} = {every} is more than the {work.steps} steps of the run, so it"
                " happens at the end only",
                param=f"training.{name}",
            )


def _of_rows(spec: JobSpec, work: Work, rows: TrainingData) -> Iterator[Warned]:
    receipt = rows.receipt
    for notice in rows.notices:
        yield Warned(code=notice.code, message=notice.message, param="dataset")
    if spec.training.packing and len(rows.units) == work.num_rows:
        yield Warned(
            code="packing_useless",
            message=f"no two of the {work.num_rows} rows fit into max_length"
            f" {spec.dataset.max_length} together; packing changes nothing",
            param="training.packing",
        )
    if receipt.num_truncated:
        yield Warned(
            code="rows_cut",
            message=f"{receipt.num_truncated} of {receipt.num_lines} rows are longer than"
            f" max_length {spec.dataset.max_length} and lose their end",
            param="dataset.max_length",
        )
    if receipt.num_dropped:
        yield Warned(
            code="rows_dropped",
            message=f"{receipt.num_dropped} of {receipt.num_lines} rows are left out:"
            f" {', '.join(f'{n} {reason}' for reason, n in receipt.dropped_reasons.items())}",
            param="dataset",
        )
