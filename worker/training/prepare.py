"""Getting a run ready: loading its parts and, when resuming, the state it continues from."""

import torch
from torch.utils import deterministic
from transformers import PreTrainedModel

from app.domain import failpoints
from app.domain.runs import RunFile
from app.domain.spec import JobSpec
from worker.training import (
    adapters,
    checkpoint,
    data,
    fingerprint,
    model,
    optim,
    products,
    state,
)
from worker.training.adapters import Adapted
from worker.training.loss import make_loss_sum
from worker.training.memory import MemoryMeter
from worker.training.optim import Schedule
from worker.training.reporting import EventLog
from worker.training.sampler import Sampler
from worker.training.session import Session
from worker.training.state import TrainingState


def prepare(run: RunFile, log: EventLog) -> Session:
    """Load everything and, when resuming, restore the state of the checkpoint.

    Raises:
        LoradError: The model, the data, the adapter or the checkpoint cannot be used.
    """
    failpoints.hit("trainer.load")
    _set_up_torch(run)
    session = _load(run)
    state.seed_everything(run.spec.seed)
    _note_data(session, log)
    if run.resume is not None:
        _resume(session, log)
    return session


def _set_up_torch(run: RunFile) -> None:
    torch.set_num_threads(run.num_threads)
    if run.device == "cpu":
        torch.use_deterministic_algorithms(mode=True)
        # Determinism does not need it, and filling every new tensor costs a pass over memory.
        deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def _load(run: RunFile) -> Session:
    spec = run.spec
    device = torch.device(f"cuda:{run.device_index}" if run.device == "cuda" else "cpu")
    dtype = model.resolve_dtype(spec.training.dtype, device=run.device)
    model_sha256 = fingerprint.start(run.model_folder, run.cache_folder)
    adapted = _load_adapted(run, device, dtype)
    tokenizer = model.load_tokenizer(run.model_folder)
    rows = data.load(run, tokenizer)
    sampler, schedule = _plan(spec, num_units=len(rows.units))
    return Session(
        run=run,
        device=device,
        dtype=dtype,
        adapted=adapted,
        loss_sum=make_loss_sum(adapted.base),
        data=rows,
        sampler=sampler,
        schedule=schedule,
        optimizer=optim.make_optimizer(
            list(adapted.parameters.values()), weight_decay=spec.training.weight_decay
        ),
        model_sha256=model_sha256,
        fingerprints={
            "dataset_sha256": run.dataset.sha256,
            "tokens_sha256": rows.fingerprint(),
            "tokenizer_sha256": fingerprint.of_tokenizer(run.model_folder),
        },
        memory=MemoryMeter(device),
    )


def _load_adapted(run: RunFile, device: torch.device, dtype: torch.dtype) -> Adapted:
    spec = run.spec
    base = model.load_model(run.model_folder, dtype=dtype, device=device)
    adapted = adapters.attach(base, spec.lora, seed=spec.seed, base_model=spec.base_model)
    products.speed_up(adapted.base)
    if spec.training.gradient_checkpointing is True:
        _enable_checkpointing(adapted.base)
    return adapted


def _enable_checkpointing(base: PreTrainedModel) -> None:
    # transformers 5.2x renamed the method and warns about the old name.
    enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    # It also makes the embeddings' output need a gradient, for the reentrant kind only.
    base.disable_input_require_grads()


def _plan(spec: JobSpec, *, num_units: int) -> tuple[Sampler, Schedule]:
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


def _note_data(session: Session, log: EventLog) -> None:
    log.receipt(session.data.receipt, step=0)
    if session.data.has_chat and not session.data.ends_turns:
        log.notice(
            step=0,
            code="no_end_of_turn",
            message="no assistant turn ends in a special token under the model's chat template, so"
            " the tuned model may not learn to stop",
        )


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
