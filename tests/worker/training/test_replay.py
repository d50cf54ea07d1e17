"""A replay does the recorded steps again to the last bit, and leaves nothing behind."""

import fcntl
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import ResumeMismatch, Unavailable
from app.domain.runs import RUN_FILE, RunFile
from app.domain.tools import ReplayRequest, ReplayResult
from tests.training_runs import Attempt, Workplace
from tests.worker.training.test_evaluate import tensors_sha256
from worker.training.replay import replay

GROUPS: dict[str, Any] = {
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj"]},
    "dataset": {"val_size": 3},
    # The replay evaluates and saves nothing, so it also shows that those change no number.
    "training": {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "save_steps": 2,
        "save_total_limit": None,
        "eval_steps": 1,
        "logging_steps": 2,
        "learning_rate": 1e-2,
    },
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Attempt:
    return Workplace(tmp_path_factory.mktemp("recorded"), tiny_llama).train(**GROUPS)


def replayed(
    recorded: Attempt, scratch: Path, *, step: int, num_steps: int, **changes: Any
) -> ReplayResult:
    run = RunFile.model_validate_json((recorded.folder / RUN_FILE).read_bytes())
    run = run.model_copy(update={"resume": recorded.checkpoint(step), **changes})
    scratch.mkdir(exist_ok=True)
    return replay(ReplayRequest(run=run, num_steps=num_steps), scratch)


@pytest.mark.parametrize(("step", "num_steps"), [(2, 2), (4, 2)], ids=["in between", "to the end"])
def test_a_replay_equals_what_was_recorded(
    tmp_path: Path, recorded: Attempt, step: int, num_steps: int
):
    before = sorted(recorded.folder.rglob("*"))

    result = replayed(recorded, tmp_path, step=step, num_steps=num_steps)

    losses = {each.step: each.loss for each in result.steps}
    assert list(losses) == [step + 1, step + 2]
    assert losses[step + 2] == recorded.losses[step + 2]
    assert result.tensors_sha256 == tensors_sha256(recorded, step + 2)
    assert sorted(recorded.folder.rglob("*")) == before
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_replay_of_something_else_is_seen_in_its_state(tmp_path: Path, recorded: Attempt):
    run = RunFile.model_validate_json((recorded.folder / RUN_FILE).read_bytes())
    training = run.spec.training.model_copy(update={"learning_rate": 2e-2})
    spec = run.spec.model_copy(update={"training": training})

    result = replayed(recorded, tmp_path, step=2, num_steps=2, spec=spec)

    assert result.steps[-1].loss != recorded.losses[4]
    assert result.tensors_sha256 != tensors_sha256(recorded, 4)
    assert any("schedule was computed anew" in notice for notice in result.notices)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, recorded: Attempt):
    run = RunFile.model_validate_json((recorded.folder / RUN_FILE).read_bytes())
    spec = run.spec.model_copy(update={"seed": 8})

    with pytest.raises(ResumeMismatch, match="seed"):
        replayed(recorded, tmp_path, step=2, num_steps=1, spec=spec)


def test_a_gpu_that_is_busy_or_elsewhere_is_named(tmp_path: Path, recorded: Attempt):
    run = RunFile.model_validate_json((recorded.folder / RUN_FILE).read_bytes())
    lock_file = tmp_path / "locks" / "cuda-0.lock"
    run = run.model_copy(update={"device": "cuda", "lock_file": lock_file})
    lock_file.parent.mkdir()

    with pytest.raises(Unavailable, match="this worker has none"):
        replay(ReplayRequest(run=run, num_steps=1, device="cpu"), tmp_path)
    with lock_file.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="GPU 0 is busy"):
            replay(ReplayRequest(run=run, num_steps=1, device="cuda"), tmp_path)
