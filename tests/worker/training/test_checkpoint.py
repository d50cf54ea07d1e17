"""Damaged and foreign checkpoints are refused; a good one carries everything."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.checkpoints import MANIFEST_NAME, hash_file
from app.domain.runs import EVENTS_FILE, ResumePoint
from tests.training_runs import CHAT_ROWS, Attempt, Workplace
from worker.training import state
from worker.training.prepare import prepare
from worker.training.reporting import EventLog

FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "training_state.json",
    MANIFEST_NAME,
)
TRAINING = {"per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 2}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Attempt:
    """Return a run of 4 steps with a checkpoint at 2."""
    workplace = Workplace(tmp_path_factory.mktemp("source"), tiny_llama)
    return workplace.train(lora=LORA, training=TRAINING)


@pytest.fixture
def point(source: Attempt, tmp_path: Path) -> ResumePoint:
    """Return a copy of the checkpoint that may be damaged."""
    original = source.checkpoint(2)
    folder = tmp_path / "copy" / original.folder.name
    shutil.copytree(original.folder, folder)
    return original.model_copy(update={"folder": folder})


def resume(workplace: Workplace, point: ResumePoint, **changes: Any) -> Attempt:
    return workplace.train(**{"lora": LORA, "training": TRAINING, **changes}, resume=point)


def assert_refused(attempt: Attempt, message: str) -> None:
    assert attempt.exit_code == 1
    assert attempt.failed.code == "resume_mismatch"
    assert message in attempt.failed.message
    assert "step" not in attempt.kinds


def assert_unreadable(attempt: Attempt, message: str, printed: str) -> None:
    """The next attempt looks again, finds it corrupt and takes another; so nothing has failed."""
    assert attempt.exit_code == 2
    assert attempt.kinds == []
    assert "cannot be read" in printed
    assert message in printed


def sign(point: ResumePoint) -> ResumePoint:
    """Write a manifest that fits the folder's files, as a careful forger would."""
    path = point.folder / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    for file in manifest["files"]:
        content = (point.folder / file["name"]).read_bytes()
        file["bytes"], file["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest))
    return point.model_copy(update={"manifest_sha256": hash_file(path)})


def change_tensors(
    point: ResumePoint, file: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> ResumePoint:
    tensors = {name: t.clone() for name, t in load_file(point.folder / file).items()}
    change(tensors)
    save_file(tensors, point.folder / file)
    return sign(point)


def test_an_untouched_checkpoint_continues_to_the_same_adapter(
    workplace: Workplace, point: ResumePoint, source: Attempt
):
    rest = resume(workplace, point)

    assert rest.exit_code == 0
    assert rest.kinds == ["ready", "step", "step", "checkpoint", "finished"]
    assert rest.losses == {step: source.losses[step] for step in (3, 4)}
    assert rest.final_adapter == source.final_adapter
    assert rest.events[-1].num_tokens == source.events[-1].num_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(
    workplace: Workplace, point: ResumePoint, name: str, capfd: pytest.CaptureFixture[str]
):
    (point.folder / name).unlink()

    attempt = resume(workplace, point)

    assert_unreadable(attempt, f"{name} is missing", capfd.readouterr().err)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(
    workplace: Workplace, point: ResumePoint, name: str, capfd: pytest.CaptureFixture[str]
):
    content = bytearray((point.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (point.folder / name).write_bytes(content)

    assert_unreadable(resume(workplace, point), name, capfd.readouterr().err)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors"])
def test_one_changed_number_is_refused_even_under_a_fitting_manifest(
    workplace: Workplace, point: ResumePoint, file: str
):
    forged = change_tensors(point, file, lambda tensors: next(iter(tensors.values())).add_(1))

    assert_refused(resume(workplace, forged), "did not load completely")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors"])
def test_a_missing_tensor_is_refused_by_name(workplace: Workplace, point: ResumePoint, file: str):
    forged = change_tensors(point, file, lambda tensors: tensors.pop(min(tensors)))

    assert_refused(resume(workplace, forged), "is missing from the checkpoint")


def test_a_tensor_that_the_run_does_not_have_is_refused(workplace: Workplace, point: ResumePoint):
    forged = change_tensors(
        point, "adapter_model.safetensors", lambda t: t.update(extra=torch.ones(1))
    )

    assert_refused(resume(workplace, forged), "adapter tensor extra is not in this run")


@pytest.mark.parametrize("generator", ["python", "numpy_key", "numpy_position"])
def test_the_state_of_every_generator_is_needed(
    workplace: Workplace, point: ResumePoint, generator: str
):
    path = point.folder / "training_state.json"
    saved = json.loads(path.read_text())
    del saved["host_rng"][generator]
    path.write_text(json.dumps(saved))

    assert_refused(resume(workplace, sign(point)), generator)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 8}, "seed"),
        ({"rows": CHAT_ROWS[:-1]}, "dataset_sha256"),
        ({"lora": {**LORA, "r": 8}}, "lora.r"),
        ({"lora": {**LORA, "lora_alpha": 9}}, "lora.lora_alpha"),
        ({"lora": {**LORA, "target_modules": ["q_proj", "v_proj"]}}, "lora.target_modules"),
        ({"training": {**TRAINING, "per_device_train_batch_size": 3}}, "batch_size"),
        ({"training": {**TRAINING, "weight_decay": 0.1}}, "training.weight_decay"),
        ({"dataset": {"train_on_inputs": True}}, "dataset.train_on_inputs"),
    ],
)
def test_a_checkpoint_of_a_different_run_is_refused_naming_the_field(
    workplace: Workplace, point: ResumePoint, change: dict[str, Any], field: str
):
    assert_refused(resume(workplace, point, **change), field)


def test_another_base_model_is_refused(tmp_path: Path, tiny_llama: Path, point: ResumePoint):
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))

    attempt = resume(Workplace(tmp_path, other), point)

    assert_refused(attempt, "base_model_sha256")


def test_a_checkpoint_of_another_job_is_refused(workplace: Workplace, point: ResumePoint):
    path = point.folder / MANIFEST_NAME
    path.write_text(path.read_text().replace("job-0199", "job-0200"))

    assert_refused(resume(workplace, sign(point)), "belongs to job-0200")


def test_the_final_folder_is_no_checkpoint(workplace: Workplace, source: Attempt):
    folder = source.folder / "final"
    point = ResumePoint(folder=folder, step=4, manifest_sha256=hash_file(folder / MANIFEST_NAME))

    attempt = resume(workplace, point)

    assert_refused(attempt, "is a final adapter, no checkpoint")


def test_a_longer_run_recomputes_the_schedule_and_says_so(workplace: Workplace, point: ResumePoint):
    longer = resume(workplace, point, training={**TRAINING, "max_steps": 6})

    assert longer.exit_code == 0
    assert [step.step for step in longer.steps] == [3, 4, 5, 6]
    assert "schedule_changed" in longer.notices
    # Cosine from 2e-4 over 6 steps with 1 of warm-up, at 2 steps done: 0.5 (1 + cos(pi / 5)).
    assert longer.steps[0].metrics.learning_rate == pytest.approx(1.8090e-4, rel=1e-4)


def test_another_learning_rate_is_taken_and_noted(workplace: Workplace, point: ResumePoint):
    changed = resume(workplace, point, training={**TRAINING, "learning_rate": 1e-3})

    assert changed.exit_code == 0
    assert "0.0002" in changed.notices["schedule_changed"]
    assert "0.001" in changed.notices["schedule_changed"]


def test_a_change_of_when_to_save_and_log_is_no_change_of_the_run(
    workplace: Workplace, point: ResumePoint, source: Attempt
):
    changed = resume(workplace, point, training={**TRAINING, "save_steps": 1, "logging_steps": 2})

    assert changed.final_adapter == source.final_adapter
    assert not changed.notices


def test_other_surroundings_are_noted(workplace: Workplace, point: ResumePoint):
    attempt = resume(workplace, point, num_threads=2)

    assert "num_threads 1 -> 2" in attempt.notices["surroundings_changed"]


def test_the_adapter_is_written_in_the_plain_layout_without_a_machine_s_path(source: Attempt):
    config = json.loads((source.folder / "final" / "adapter_config.json").read_text())
    weights = load_file(source.folder / "final" / "adapter_model.safetensors")

    assert config["base_model_name_or_path"] == "model-of-the-test"
    assert config["target_modules"] == ["q_proj"]
    assert config["inference_mode"] is True
    assert sorted(weights) == [
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{matrix}.weight"
        for layer in (0, 1)
        for matrix in ("A", "B")
    ]


def test_nothing_in_a_checkpoint_is_pickled(source: Attempt):
    folder = source.checkpoint(2).folder

    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    for file in folder.iterdir():
        assert file.suffix in (".json", ".safetensors")
        assert not file.read_bytes().startswith((b"\x80", b"PK"))


@pytest.mark.parametrize("content", [b'{"schema_version": 1, "step": 5}', b"{}", b"[1]"])
def test_a_state_of_another_version_says_what_to_do(content: bytes):
    with pytest.raises(ValueError, match="continue with the lorad that wrote it"):
        state.read(content)


def test_the_generators_of_the_host_go_on_where_they_were(workplace: Workplace, point: ResumePoint):
    path = point.folder / "training_state.json"
    saved = json.loads(path.read_text())
    state.seed_everything(99)
    host = state.capture_host_rng()
    path.write_text(json.dumps({**saved, "host_rng": host.model_dump(mode="json")}))
    run = workplace.run_file(lora=LORA, training=TRAINING, resume=sign(point))

    with EventLog(run.attempt_folder / EVENTS_FILE) as log:
        prepare(run, log)

    assert state.capture_host_rng() == host
