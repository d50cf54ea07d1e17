"""The certificate: what is measured of the final adapter before the job may succeed."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from app.domain.certificates import Certificate, Check
from app.domain.checkpoints import ADAPTER_FILES, hash_file
from app.domain.errors import AdapterUnhealthy
from worker.training import healing, pulse
from worker.training.batch import Batch, lay_end_to_end
from worker.training.encode import EncodedRow
from worker.training.examine import Findings, Question, Row
from worker.training.gradients import is_felt, place_of, shortened
from worker.training.reporting import EventLog
from worker.training.session import Session

Examiner = Callable[[Question], Findings]
"""Answers from a process that never held the trained model."""

_WEIGHTS = ADAPTER_FILES[1]
_MAX_ROWS = 16
# 16 ordinary rows; longer ones would only make the check slower, not better.
_MAX_TOKENS = 2048
# Largest relative difference between the loss at the end of training and that of the saved files.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
# Losses near zero are compared as if they were this large (nats): they are differences of numbers
# a hundred times larger.
_SMALLEST_LOSS = 0.1


def certify(session: Session, log: EventLog, folder: Path, examiner: Examiner) -> None:
    """Examine the saved adapter in `folder`; the live model is gone afterwards.

    Raises:
        AdapterUnhealthy: A check failed; the message carries the measurement.
    """
    began = time.perf_counter()
    rows, kind = _choose(session)
    batches, trained = _measure_in_memory(session, rows)
    checks = [_finite(folder), _moved(session), _base_unchanged(session)]
    _release(session)
    pulse.beat()
    found = examiner(
        Question(run=session.run, adapter_folder=folder, rows=tuple(map(_as_row, batches)))
    )
    losses = _Losses(batches, trained, found)
    checks += [_loads(found), losses.reproduced(_TOLERANCE[session.dtype]), losses.differ(found)]
    certificate = Certificate(
        status="passed" if all(check.passed for check in checks) else "failed",
        checks=tuple(checks),
        rows=kind,
        num_rows=len(batches),
        loss=losses.trained,
        reloaded_loss=losses.reloaded,
        base_loss=losses.base,
        adapter_sha256=hash_file(folder / _WEIGHTS),
        seconds=time.perf_counter() - began,
    )
    log.certificate(certificate, step=session.progress.step)
    _require(certificate)


def _require(certificate: Certificate) -> None:
    failed = [check for check in certificate.checks if not check.passed]
    if failed:
        told = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise AdapterUnhealthy(
            f"the trained adapter failed {len(failed)} of {len(certificate.checks)} checks: {told}."
            " The checkpoints are kept; GET /jobs/{id}/certificate (`lorad certificate JOB`) has"
            " everything that was measured"
        )


def _choose(session: Session) -> tuple[Sequence[EncodedRow], Literal["evaluation", "training"]]:
    """Return the first rows that fit the budget together; the shortest one if none does."""
    held_out = session.data.eval_rows
    candidates = held_out or session.data.rows
    chosen: list[EncodedRow] = []
    num_tokens = 0
    for row in candidates:
        if len(chosen) < _MAX_ROWS and num_tokens + len(row.ids) <= _MAX_TOKENS:
            chosen.append(row)
            num_tokens += len(row.ids)
    if not chosen:
        chosen = [min(candidates, key=lambda row: len(row.ids))]
    return chosen, "evaluation" if held_out else "training"


def _measure_in_memory(
    session: Session, rows: Sequence[EncodedRow]
) -> tuple[list[Batch], list[float]]:
    """Return a batch per row and its summed loss; where memory runs out, of the shorter rows only.

    A run that trained within its limit must not be lost to the last look at what it trained.
    """
    is_limited = session.memory.limit_bytes is not None
    _release_optimizer(session)
    while True:
        batches = [lay_end_to_end([row], device=session.device) for row in rows]
        try:
            return batches, _losses(session, batches)
        except (RuntimeError, MemoryError) as error:
            if len(rows) == 1 or not healing.is_out_of_memory(error, is_limited=is_limited):
                raise
        # Outside of the handler: the error holds the frames that hold the tensors.
        longest = max(range(len(rows)), key=lambda index: len(rows[index].ids))
        rows = [row for index, row in enumerate(rows) if index != longest]
        healing.return_freed(session.device)


@torch.no_grad()
def _losses(session: Session, batches: Sequence[Batch]) -> list[float]:
    """Return the summed loss of each row as training computes it, dropout off."""
    session.adapted.model.eval()
    return [session.loss_sum(batch).item() for batch in batches]


def _as_row(batch: Batch) -> Row:
    return Row(
        ids=tuple(batch.input_ids_BT[0].tolist()),
        label_positions=tuple(batch.label_positions_N.tolist()),
    )


def _finite(folder: Path) -> Check:
    tensors = load_file(folder / _WEIGHTS)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    detail = f"{len(broken)} of {len(tensors)} tensors of the adapter hold NaN or infinity"
    if broken:
        detail += f": {shortened(broken)}"
    return Check(name="finite", passed=not broken, detail=detail)


def _moved(session: Session) -> Check:
    """Look whether each matrix that could have moved is somewhere else than at the start."""
    num_updates = session.progress.num_updates
    if num_updates == 0:
        return Check(name="moved", passed=False, detail=_why_no_update(session))
    peak = session.schedule.peak
    distances = session.flow.distances()
    due = [
        name
        for name, parameter in session.adapted.parameters.items()
        if num_updates >= (1 if (place := place_of(name)).matrix == "B" else 2)
        and not place.may_be_idle
        and is_felt(parameter, parameter.detach().norm().item(), peak)
    ]
    still = [str(place_of(name)) for name in due if distances[name] == 0]
    detail = (
        f"{len(due) - len(still)} of {len(due)} matrices moved in {num_updates} updates"
        + (f"; unmoved: {shortened(still)}" if still else "")
        + ("; A was not asked for: it moves with the second update" if num_updates == 1 else "")
    )
    return Check(name="moved", passed=not still, detail=detail)


def _why_no_update(session: Session) -> str:
    steps, warmup = session.progress.step, session.schedule.num_warmup_steps
    detail = f"no update with a learning rate above 0 was applied in {steps} steps"
    if session.progress.num_skipped:
        return f"{detail}; {session.progress.num_skipped} were skipped as not finite"
    return (
        f"{detail}: warm-up takes {warmup} of {session.total_steps} steps and starts at 0; set"
        " training.warmup_steps to 0, or training.max_steps higher"
    )


def _base_unchanged(session: Session) -> Check:
    changed = session.frozen.changed()
    detail = f"{len(changed)} of {len(session.frozen)} frozen tensors differ from what was loaded"
    if changed:
        detail += f": {shortened(changed)}"
    return Check(name="base_unchanged", passed=not changed, detail=detail)


def _release(session: Session) -> None:
    """Free the live model, so that checking a copy does not need room for two."""
    for parameter in session.adapted.model.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    healing.return_freed(session.device)


def _release_optimizer(session: Session) -> None:
    """Free what only another step would need; the last checkpoint has it."""
    session.optimizer.zero_grad(set_to_none=True)
    session.optimizer.state.clear()
    healing.return_freed(session.device)


def _loads(found: Findings) -> Check:
    if found.problem is not None:
        return Check(name="loads", passed=False, detail=f"PEFT refuses it: {found.problem}")
    wrong = [
        f"{len(names)} {what} ({shortened(names)})"
        for what, names in (
            ("missing in the file", found.missing),
            ("in the file that PEFT does not know", found.unexpected),
            ("that do not arrive as they were saved", found.different),
        )
        if names
    ]
    detail = ", ".join(wrong) or f"all {found.num_tensors} tensors arrive, no name is left over"
    return Check(name="loads", passed=not wrong, detail=detail)


class _Losses:
    """Mean losses in nats per target token over the rows that the base model can be measured on.

    A row that breaks the base model itself says nothing about the adapter.
    """

    def __init__(self, batches: Sequence[Batch], trained: Sequence[float], found: Findings) -> None:
        self._used = [i for i, loss in enumerate(found.base_losses) if loss is not None]
        self._num_left_out = len(batches) - len(self._used)
        self._num_targets = sum(batches[index].num_targets for index in self._used)
        self.base = self._mean(found.base_losses)
        self.trained = self._mean(trained)
        self.reloaded = self._mean(found.losses)

    def reproduced(self, tolerance: float) -> Check:
        detail = (
            f"loss {_shown(self.trained)} at the end of training, {_shown(self.reloaded)} from the"
            f" saved files in a fresh process"
        )
        if self._num_left_out:
            detail += f"; {self._num_left_out} rows on which the base is not finite left out"
        if self.trained is None or self.reloaded is None:
            return Check(name="loss_reproduced", passed=False, detail=detail)
        difference = abs(self.trained - self.reloaded) / max(self.trained, _SMALLEST_LOSS)
        return Check(
            name="loss_reproduced",
            passed=difference <= tolerance,
            detail=f"{detail}; relative difference {difference:.1e}, at most {tolerance:.0e}",
        )

    def differ(self, found: Findings) -> Check:
        difference = found.max_logit_difference
        is_other = difference is not None and (difference > 0 or self.base != self.reloaded)
        return Check(
            name="output_differs",
            passed=is_other,
            detail=f"loss {_shown(self.base)} without the adapter, {_shown(self.reloaded)} with it;"
            f" largest difference of a logit {_shown(difference)}",
        )

    def _mean(self, sums: Sequence[float | None]) -> float | None:
        values = [sums[index] for index in self._used] if len(sums) else []
        if not values or any(value is None or not math.isfinite(value) for value in values):
            return None
        return sum(value for value in values if value is not None) / self._num_targets


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
