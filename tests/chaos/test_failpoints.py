"""Every failpoint of the product is in a scenario, or in a test that really fails there."""

import ast
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain import failpoints
from app.domain.runs import EXIT_DISK_FULL, TOKENS_FOLDER
from tests.chaos.harness import visits
from tests.chaos.harness.failing import IN_API, IN_TRAINER, IN_WORKER
from tests.training_runs import ROOT, Attempt, TrainerProcess, Workplace, run_in_process

TRAINING = {"per_device_train_batch_size": 2, "max_steps": 6, "save_steps": 2}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1}

# Places that only the real trainer has: how often it comes there before it is killed, the
# checkpoint that it has by then, and the tests that fail there; they are in this file.
IN_REAL_TRAINER = {"tokens.rename": (1, 0), "trainer.micro_batch": (5, 4)}

# Places that a test of their own reaches: name -> the test, which sets the failpoint by its name.
ELSEWHERE: dict[str, str] = {
    "export.written": "tests/exports/test_service.py"
    "::TestExportsThatAreCaughtInTheMiddle::test_a_sabotaged_export_fails_and_the_job_stays",
    "export.phase": "tests/exports/test_produce.py"
    "::test_an_export_that_meets_a_full_disk_says_so_and_the_next_try_succeeds",
    "export.renamed": "tests/exports/test_exporting.py"
    "::test_a_try_that_ends_between_the_rename_and_the_commit_is_done_again",
    "host.step": "tests/worker/inference/test_hosts.py"
    "::test_a_host_that_is_killed_fails_its_requests_once_and_the_next_one_goes_on",
}


def calls_of_hit() -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a failpoint in the product with where it is."""
    for package in ("app", "worker"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Call) and _is_hit(node.func):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def _is_hit(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        named = isinstance(function.value, ast.Name) and function.value.id == "failpoints"
        return named and function.attr == "hit"
    return isinstance(function, ast.Name) and function.id == "hit"


def test_every_failpoint_is_in_the_table_of_a_scenario_and_the_tables_have_no_others():
    names: dict[str, str] = {}
    for place, call in calls_of_hit():
        (name,) = call.args
        assert isinstance(name, ast.Constant), f"{place}: a name that cannot be looked up"
        names[name.value] = place

    covered = {*IN_TRAINER, *IN_WORKER, *IN_API, *IN_REAL_TRAINER, *ELSEWHERE}
    assert {name: names[name] for name in names.keys() - covered} == {}
    assert covered - names.keys() == set()
    assert len(names) >= 23


def test_a_place_outside_the_scenarios_has_a_test_that_sets_its_failpoint():
    for name, test in ELSEWHERE.items():
        file, *_, function = test.split("::")
        source = (ROOT / file).read_text()
        assert f"def {function}(" in source, test
        assert f"{name}=" in source, name


def test_an_act_is_in_the_journal_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(failpoints, "_act", failpoints._act)  # put back at the end
    monkeypatch.setattr(failpoints, "_visits", Counter())
    monkeypatch.setenv(failpoints.VARIABLE, "a=raise:EIO@2;b=sleep:0")
    visits.keep(tmp_path, "me")

    failpoints.hit("a")
    failpoints.hit("c")
    before = visits.read(tmp_path)
    with pytest.raises(OSError, match="failpoint a"):
        failpoints.hit("a")
    failpoints.hit("b")

    assert before == []
    assert [(each.who, each.thread, each.point, each.action) for each in visits.read(tmp_path)] == [
        ("me", "MainThread", "a", "raise:EIO"),
        ("me", "MainThread", "b", "sleep:0"),
    ]


def place(tmp_path: Path, name: str, model: Path) -> Workplace:
    folder = tmp_path / name
    folder.mkdir()
    return Workplace(folder, model)


def test_a_real_trainer_that_is_killed_there_is_continued_to_the_same_adapter(
    tmp_path: Path, tiny_llama: Path
):
    places = {name: place(tmp_path, name, tiny_llama) for name in IN_REAL_TRAINER}
    started = {
        name: TrainerProcess(
            places[name].run_file(lora=LORA, training=TRAINING),
            failpoints=f"{name}=kill@{visit}",
        )
        for name, (visit, _) in IN_REAL_TRAINER.items()
    }
    whole = place(tmp_path, "whole", tiny_llama).train(lora=LORA, training=TRAINING)

    for name, (_, step) in IN_REAL_TRAINER.items():
        killed = started[name].wait()
        assert killed.exit_code == -signal.SIGKILL, started[name].log()
        assert set(killed.losses) == set(range(1, step + 1))
        resume = killed.checkpoint(step) if step else None
        rest = places[name].train(lora=LORA, training=TRAINING, resume=resume)
        assert killed.losses | rest.losses == whole.losses
        assert rest.final_adapter == whole.final_adapter


@pytest.mark.parametrize(("error", "exit_code"), [("EIO", 2), ("ENOSPC", EXIT_DISK_FULL)])
def test_tokens_that_cannot_be_kept_leave_nothing_behind_that_is_taken_for_them(
    tmp_path: Path,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: str,
    exit_code: int,
):
    work = place(tmp_path, "work", tiny_llama)
    monkeypatch.setattr(failpoints, "_visits", Counter())
    monkeypatch.setenv(failpoints.VARIABLE, f"tokens.rename=raise:{error}@1")

    run = work.run_file(lora=LORA, training=TRAINING)
    failed = Attempt.of(run, run_in_process(run))
    left = list((work.folder / "cache" / TOKENS_FOLDER).iterdir())
    rest = work.train(lora=LORA, training=TRAINING)

    assert failpoints._visits["tokens.rename"] == 2
    assert failed.exit_code == exit_code
    assert left == []
    assert (rest.exit_code, max(rest.losses)) == (0, TRAINING["max_steps"])
