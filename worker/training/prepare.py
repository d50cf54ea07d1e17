"""Getting a run ready: loading its parts and, when resuming, the state it continues from."""

import torch
from torch.utils import deterministic

from app.domain import failpoints
from app.domain.runs import RunFile
from app.domain.spec import JobSpec
from worker.training import (
    adapters,
    checkpoint,
    data,
    evaluate,
    fast_layers,
    fingerprint,
    limits,
    model,
    optim,
    quantize,
    state,
)
from worker.training.adapters import Adapted
from worker.training.data import TrainingData
from worker.training.frozen import FrozenWeights
from worker.training.gradients import FlowWatch
from worker.training.loss import make_loss_sum
from worker.training.memory import MemoryMeter
from worker.training.optim import Schedule
from worker.training.reporting import EventLog
from worker.training.sampler import Sampler
from worker.training.saver import Saver
from worker.training.session import Session
from worker.training.state import TrainingState


def prepare(run: RunFile, log: EventLog) -> Session:
    """Load everything and, when resuming, restore the state of the checkpoint.

    Raises:
        LoradError: The model, the data, the adapter or the checkpoint cannot be used.
    """
    failpoints.hit("trainer.load")
    _set_up_torch(run)
    session = _load(run, log)
    state.seed_everything(run.spec.seed)
    _note_paging(session, log)
    if run.resume is not None:
        _resume(session, log)
    return session


def _set_up_torch(run: RunFile) -> None:
    torch.set_num_threads(run.num_threads)
    if run.device == "cpu":
        torch.use_deterministic_algorithms(mode=True)
        # Determinism does not need it, and filling every new tensor costs a pass over memory.
        deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def _load(run: RunFile, log: EventLog) -> Session:
    spec = run.spec
    device = torch.device(f"cuda:{run.device_index}" if run.device == "cuda" else "cpu")
    dtype = model.resolve_dtype(spec.training.dtype, device=run.device)
    memory = MemoryMeter(device, limit_bytes=limits.of_run(run, device))
    model_sha256 = fingerprint.start(run.model_folder, run.cache_folder)
    with memory.phase("data"):
        rows = _load_data(run, log)
    sampler, schedule = plan_steps(spec, num_units=len(rows.units))
    memory.expected_bytes = limits.expect(
        run, rows, sampler, dtype=dtype, total_steps=schedule.total_steps
    )
    limits.enforce(memory.limit_bytes, device)  # not before: a refusal should tell its numbers
    with memory.phase("load"):
        adapted = _load_adapted(run, device, dtype, limits.tokens_per_step(spec, rows))
    return Session(
        run=run,
        device=device,
        dtype=dtype,
        adapted=adapted,
        loss_sum=make_loss_sum(adapted.base),
        data=rows,
        sampler=sampler,
        schedule=schedule,
        optimizer=_make_optimizer(adapted, spec),
        model_sha256=model_sha256,
        quantized_sha256=quantize.start_digest(adapted.base),
        fingerprints={
            "dataset_sha256": run.dataset.sha256,
            "tokens_sha256": rows.fingerprint(),
            "tokenizer_sha256": fingerprint.of_tokenizer(run.model_folder),
        },
        # The CPU has no cores to spare: whoever writes takes them from the training.
        saver=Saver(is_beside=device.type == "cuda"),
        memory=memory,
        flow=FlowWatch(
            adapted.model, adapted.parameters, every=spec.monitoring.gradient_flow_steps
        ),
        frozen=FrozenWeights(adapted.model, trained=adapted.parameters),
    )


def _load_data(run: RunFile, log: EventLog) -> TrainingData:
    """Read the data before the model: what is wrong with it is found, and told, soon.

    Raises:
        UnusableData: There is too little to train on; the receipt that shows it is written already.
    """
    rows = data.load(run, model.load_tokenizer(run.model_folder))
    log.receipt(rows.receipt, step=0)
    for notice in rows.notices:
        log.notice(step=0, code=notice.code, message=notice.message, **notice.data)
    data.require_usable(rows)
    return rows


def _load_adapted(
    run: RunFile, device: torch.device, dtype: torch.dtype, tokens_per_step: float
) -> Adapted:
    spec = run.spec
    base = model.load_model(
        run.model_folder, dtype=dtype, device=device, quantization=spec.quantization
    )
    adapted = adapters.attach(base, spec.lora, seed=spec.seed, base_model=spec.base_model)
    fast_layers.speed_up(adapted.base, tokens_per_step=tokens_per_step)
    if spec.training.gradient_checkpointing is True:
        model.enable_checkpointing(adapted.base)
    return adapted


def _make_optimizer(adapted: Adapted, spec: JobSpec) -> torch.optim.Optimizer:
    return optim.make_optimizer(
        list(adapted.parameters.values()),
        weight_decay=spec.training.weight_decay,
        kind=spec.training.optim,
    )


def _note_paging(session: Session, log: EventLog) -> None:
    kind = session.run.spec.training.optim
    if kind == "paged_adamw_8bit" and not optim.has_paging(session.device):
        log.notice(
            step=0,
            code="no_paging",
            message=f"training.optim = {kind} runs as adamw_8bit: {session.device.type} has no"
            " memory that pages between host and device",
        )


def plan_steps(spec: JobSpec, *, num_units: int) -> tuple[Sampler, Schedule]:
    training = spec.training
    sampler = Sampler(
        num_units=num_units,
        units_per_step=training.per_device_train_batch_size * training.gradient_accumulation_steps,
        seed=spec.seed,
    )
    total_steps = sampler.total_steps(
        max_steps=training.max_steps, num_train_epochs=training.num_train_epochs
    )
    return sampler, optim.make_schedule(training, total_steps=total_steps)


def _resume(session: Session, log: EventLog) -> None:
    point = session.run.resume
    assert point is not None
    saved = checkpoint.load(
        point,
        session.adapted,
        session.optimizer,
        identity=session.identity(),
        job_id=session.run.job_id,
        device=session.device,
    )
    for name, value in saved.progress:
        setattr(session.progress, name, value)
    session.saved.step = step = saved.progress.step
    evaluate.lift_early_stop(session, log, steps_before=saved.total_steps)
    if saved.schedule != vars(session.schedule):
        log.notice(
            step=step,
            code="schedule_changed",
            message=f"the learning-rate schedule was computed anew: {saved.schedule} before,"
            f" {vars(session.schedule)} now; losses will differ from an unchanged run",
        )
    _note_surroundings(session, saved, log)


def _note_surroundings(session: Session, saved: TrainingState, log: EventLog) -> None:
    ours = session.surroundings()
    changed = {n: v for n, v in ours.items() if saved.surroundings.get(n) != v}
    if changed:
        differences = ", ".join(
            f"{name} {saved.surroundings.get(name)} -> {value}" for name, value in changed.items()
        )
        log.notice(
            step=saved.progress.step,
            code="surroundings_changed",
            message=f"{differences}: the run continues, but not to the last bit",
        )
