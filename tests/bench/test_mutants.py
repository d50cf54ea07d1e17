"""The mutants fit the code and the tests that they name, and their runner tells the truth."""

import ast
import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil
import pytest

from bench.mutants import report, running
from bench.mutants.catalogue import ALL
from bench.mutants.mutant import Mutant, Stale, edit, mutated
from bench.mutants.project import LORAD, CannotRun, Copy, Project
from bench.mutants.running import Result, Verdict

NAMES = [mutant.name for mutant in ALL]
FACTS = {"date": "2026-01-02T03:04:05+00:00", "machine": "a machine"}

PRODUCT = {
    "product/__init__.py": "",
    "product/sums.py": "def add(a, b):\n    return a + b\n\n\ndef spare():\n    return 1\n",
    "pyproject.toml": "[tool.pytest.ini_options]\n",
    "tests/test_sums.py": """
import subprocess, sys, time
from pathlib import Path
from product.sums import add

def test_two_and_two():
    assert add(2, 2) == 4

def test_nothing_at_all():
    pass

def test_a_child_imports_the_same():
    program = "from product.sums import add; print(add(1, 1))"
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True)
    assert done.stdout == "2\\n"

def test_an_orphan_is_left():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"],
                             start_new_session=True)
    Path("orphan").write_text(str(child.pid))
    assert add(1, 1) == 2

def test_that_fails_anyway():
    assert add(2, 2) == 5
""",
}


def mutant(name: str, new: str, *tests: str, old: str = "return a + b", **more: float) -> Mutant:
    return Mutant(
        name=name,
        violates="I1",
        breaks="Sums are wrong.",
        edits=[edit("product/sums.py", old, new)],
        tests=[f"tests/test_sums.py::{test}" for test in tests or ("test_two_and_two",)],
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A product of one function, with its tests."""
    for name, text in PRODUCT.items():
        path = tmp_path / "original" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Project(
        root=tmp_path / "original",
        copied=("product", "tests", "pyproject.toml", "missing"),
        linked=("missing/too",),
        packages=("product",),
    )


@pytest.fixture
def copy(project: Project, tmp_path: Path) -> Copy:
    folder = tmp_path / "copy"
    folder.mkdir()
    return Copy(project, folder)


@cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((LORAD.root / file).read_bytes())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_enough_mutants_and_each_has_a_name_of_its_own():
    assert len(ALL) >= 45
    assert [name for name, count in Counter(NAMES).items() if count > 1] == []


@pytest.mark.parametrize("mutant", ALL, ids=NAMES)
def test_a_mutant_changes_code_that_is_there_into_code_that_runs(mutant: Mutant):
    changed = mutated(LORAD.root, mutant)

    for path, text in changed.items():
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(path.read_bytes()))
    assert mutant.breaks.endswith(".")
    assert mutant.violates


@pytest.mark.parametrize("mutant", ALL, ids=NAMES)
def test_every_test_of_a_mutant_exists(mutant: Mutant):
    assert mutant.tests
    for test in mutant.tests:
        file, _, function = test.partition("::")
        assert function.partition("[")[0] in functions_in(file), test


def test_a_fault_is_caught_or_survives_and_the_original_stays(project: Project):
    faults = [
        mutant("wrong", "return a - b"),
        mutant("unseen", "return a * b"),
        mutant("elsewhere", "return 2", "test_two_and_two", old="return 1"),
        mutant("in a child", "return a - b", "test_a_child_imports_the_same"),
        mutant("again", "return a - b", "test_nothing_at_all", "test_two_and_two"),
    ]
    told: list[Result] = []

    results = running.examine(project, faults, jobs=2, tell=told.append)

    assert [(each.mutant.name, each.verdict) for each in results] == [
        ("wrong", Verdict.CAUGHT),
        ("unseen", Verdict.SURVIVED),  # 2 * 2 is 2 + 2
        ("elsewhere", Verdict.SURVIVED),
        ("in a child", Verdict.CAUGHT),
        ("again", Verdict.CAUGHT),
    ]
    assert results[4].by == "tests/test_sums.py::test_two_and_two"
    assert {each.how for each in results if each.by} == {"failed"}
    assert {each.mutant.name for each in told} == {each.mutant.name for each in results}
    assert (project.root / "product/sums.py").read_text() == PRODUCT["product/sums.py"]


def test_a_test_that_does_not_end_has_caught_its_fault(project: Project):
    hang = mutant("hang", "import time; time.sleep(300); return 4", seconds=2)

    (result,) = running.examine(project, [hang])

    assert (result.verdict, result.how) == (Verdict.CAUGHT, "hang")
    assert result.by == "tests/test_sums.py::test_two_and_two"
    assert 2 <= result.seconds < 30


def test_a_fault_that_kills_the_tests_is_caught(project: Project):
    death = mutant("death", "import os; os.kill(os.getpid(), 9)")

    (result,) = running.examine(project, [death])

    assert (result.verdict, result.how) == (Verdict.CAUGHT, "crash")


def test_what_cannot_be_judged_is_neither_caught_nor_survived(project: Project):
    faults = [
        mutant("stale", "return 3", old="return a ** b"),
        mutant("unfounded", "return a - b", "test_that_fails_anyway"),
        mutant("half founded", "return a - b", "test_that_fails_anyway", "test_two_and_two"),
    ]

    results = running.examine(project, faults)

    assert [each.verdict for each in results] == [
        Verdict.STALE,
        Verdict.UNFOUNDED,
        Verdict.CAUGHT,
    ]
    assert "occurs 0 times" in results[0].note
    assert "test_that_fails_anyway" in results[1].note
    assert "test_that_fails_anyway" in results[2].note
    assert not report.is_good(results)


def test_a_text_that_occurs_twice_is_stale(project: Project):
    with pytest.raises(Stale, match="occurs 2 times"):
        mutated(project.root, mutant("twice", "give", old="return"))


def test_a_test_that_does_not_exist_ends_the_run(project: Project):
    with pytest.raises(CannotRun, match="not found"):
        running.examine(project, [mutant("x", "return 0", "test_of_old")])


def test_a_product_that_is_not_the_copy_is_refused(project: Project, tmp_path: Path):
    folder = tmp_path / "stranger"
    folder.mkdir()
    stranger = Copy(
        Project(project.root, project.copied, project.linked, packages=("product", "json")), folder
    )

    run = stranger.run(["tests/test_sums.py"], select="", seconds=60, stops_at_first=False)

    assert run.outcomes == {}
    assert "not from the copy" in run.log
    with pytest.raises(CannotRun, match="json is not imported from the copy"):
        stranger.require_own_packages()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: orphans are adopted")
def test_no_process_of_a_run_is_left(copy: Copy):
    run = copy.run(
        ["tests/test_sums.py::test_an_orphan_is_left"],
        select="",
        seconds=60,
        stops_at_first=False,
    )

    assert list(run.outcomes.values()) == ["passed"]
    assert not psutil.pid_exists(int((copy.root / "orphan").read_text()))


def test_a_fault_that_was_taken_out_does_not_run_on(copy: Copy):
    # Same size and same second: compiled files would hide the change.
    same_size = mutant("same size", "return a - b")
    seen: list[Sequence[str]] = []

    for _ in range(2):
        with copy.changed(same_size):
            seen.append([*outcomes(copy)])
        seen.append([*outcomes(copy)])

    assert seen == [["failed"], ["passed"]] * 2


def outcomes(copy: Copy) -> Sequence[str]:
    run = copy.run(
        ["tests/test_sums.py::test_two_and_two"], select="", seconds=60, stops_at_first=True
    )
    return list(run.outcomes.values())


def results_of(*verdicts: Verdict) -> list[Result]:
    return [
        Result(mutant(f"m{n}", "return 0"), each, by="tests/a/test_b.py::test_c[x]", how="failed")
        for n, each in enumerate(verdicts)
    ]


def test_the_share_is_of_those_that_were_judged_and_survivors_are_named():
    caught, survived = Verdict.CAUGHT, Verdict.SURVIVED
    results = results_of(*[caught] * 19, survived)

    assert report.share_caught(results) == 0.95
    assert report.is_good(results)
    assert not report.is_good(results_of(*[caught] * 18, survived))
    assert not report.is_good([*results, *results_of(Verdict.UNFOUNDED)])
    assert report.share_caught([]) == 0.0
    assert "survived: m19" in report.summary(results)
    kept = json.loads(json.dumps(report.to_json(results, FACTS)))
    assert (kept["num_caught"], kept["share_caught"], kept["survivors"]) == (19, 0.95, ["m19"])
    assert kept["mutants"][0]["caught_by"] == "tests/a/test_b.py::test_c[x]"


def test_the_table_takes_the_place_of_the_one_before():
    document = "# Title\n\nText.\n"
    once = report.placed(document, report.to_markdown(results_of(Verdict.CAUGHT), FACTS))
    after = once + "\nMore.\n"

    again = report.placed(after, report.to_markdown(results_of(Verdict.SURVIVED), FACTS))

    assert "| Sums are wrong. | I1 | `test_b.py::test_c` |" in once
    assert "| Sums are wrong. | I1 | **survived** |" in again
    assert "`test_b.py::test_c`" not in again
    assert again.startswith("# Title\n\nText.\n")
    assert again.endswith("\nMore.\n")
    with pytest.raises(ValueError, match="repair"):
        report.placed("<!-- mutants -->", "")
