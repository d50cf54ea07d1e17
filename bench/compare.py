"""lorad against the trainers that people use: same rows, same adapter, same batches, in turns.

Builds a virtual environment for each peer under .cache/bench (gigabytes, once), then lets lorad's
own trainer, transformers' Trainer with PEFT, TRL and LLaMA-Factory train the same steps, one
process at a time and in rounds, and writes the tables of docs/benchmarks.md and the raw figures
into bench/results. Nothing else should run meanwhile.

    python bench/compare.py --data gsm8k.jsonl            # both tables
    python bench/compare.py --data gsm8k.jsonl --table 1 --resume   # go on after an interruption
    python bench/compare.py --data gsm8k.jsonl --quick    # does everything work? writes no document
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.comparison import environments, machine, markdown  # noqa: E402
from bench.comparison.cases import (  # noqa: E402
    CASES,
    REFERENCE,
    SEED,
    SYSTEMS,
    Case,
    Column,
    System,
    chosen_systems,
)
from bench.comparison.environments import CannotInstall  # noqa: E402
from bench.comparison.figures import Figures, Spread, Table, Work, summarize  # noqa: E402
from bench.comparison.floor import Shape, step_flops  # noqa: E402
from bench.comparison.processes import Run, Surroundings, run_system  # noqa: E402

CACHE = ROOT / ".cache" / "bench"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "bench" / "results"
_QUICK = {"steps": 2, "warmup": 1, "rounds": 1}

# Seconds to start, and the fraction of the floor reached: guesses, for the estimate only.
_STARTS = {"": 5.0, "hf": 9.0, "trl": 12.0, "llamafactory": 18.0}
_FRACTIONS: Mapping[Column, float] = {"as_run": 0.25, "given": 0.35}


@dataclass(frozen=True)
class Peers:
    """The environments that are there, and why the others are not."""

    pythons: Mapping[str, Path]
    skipped: Mapping[str, str]

    def has(self, system: System) -> bool:
        return not system.environment or system.environment in self.pythons

    def python_of(self, system: System) -> Path:
        return self.pythons[system.environment] if system.environment else Path(sys.executable)


def main() -> None:
    given = parse_arguments()
    # What the shell says of allocators and threads would reach one side and not the other.
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GOMP_"))]:
        del os.environ[name]
    systems = chosen_systems(given.systems)
    peers = prepare_peers(systems)
    for name in CASES if given.table == "all" else [given.table]:
        compare(CASES[name], [s for s in systems if peers.has(s)], peers, given)


def prepare_peers(systems: Sequence[System]) -> Peers:
    """Build the environments that are missing; one that cannot be built is left out."""
    pythons: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for name in dict.fromkeys(system.environment for system in systems if system.environment):
        try:
            pythons[name] = environments.ensure(name, CACHE / name)
        except CannotInstall as error:
            problems[name] = str(error)
    skipped = {s.name: problems[s.environment] for s in systems if s.environment in problems}
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}", flush=True)
    return Peers(pythons, skipped)


def compare(case: Case, systems: Sequence[System], peers: Peers, given: argparse.Namespace) -> None:
    """Measure one table and write it down."""
    surroundings = lay_out(case, given)
    shape, work, size = read_work(surroundings)
    speeds = [machine.matrix_speeds(surroundings, size)]
    announce(case, systems, work, speeds[0], given)
    load_before = os.getloadavg()
    runs = take_turns(systems, peers, surroundings, given)
    runs += finished_earlier(runs, surroundings.folder)
    shown = [SYSTEMS[name] for name in SYSTEMS if any(run.system == name for run in runs)]
    speeds.append(machine.matrix_speeds(surroundings, size))
    merged = {name: Spread.of(each[name] for each in speeds) for name in speeds[0]}
    if moved := [name for name, speed in merged.items() if speed.high / speed.low > 1.05]:
        print(f"note: products of {', '.join(moved)} changed speed by more than 5 % meanwhile")
    table = Table(runs, work, {n: s.median * 1e9 for n, s in merged.items()}, given.warmup)
    figures = summarize(table, shown)
    facts = {
        **machine.facts(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "num_threads": given.threads,
        "model": given.model.name,
        "data": "examples/data"
        if given.data is None
        else f"{given.data.parent.name}/{given.data.name}",
        "num_rounds": given.rounds,
        "num_measured": given.steps,
        "num_warmup": given.warmup,
        "versions": {
            REFERENCE: machine.own_versions(),
            **{
                name: environments.versions(name, CACHE / name / "bin" / "python")
                for name in dict.fromkeys(s.environment for s in shown if s.environment)
            },
        },
        "gflops": {name: asdict(speed) for name, speed in merged.items()},
        "skipped": dict(peers.skipped),
    }
    write_down(case, facts, figures, table, shape, given)


def lay_out(case: Case, given: argparse.Namespace) -> Surroundings:
    """Prepare rows and adapter in a folder, unless an interrupted comparison left them there.

    Raises:
        SystemExit: The rows cannot be used, or `--resume` finds another comparison.
    """
    from worker import launcher

    folder = CACHE / "work" / f"{'quick' if given.quick else 'table'}-{case.name}"
    variables = launcher.environment()
    data = given.data or example_rows(CACHE)
    plan = {
        **asdict(case),
        "folder": str(folder),
        "data": str(data.resolve()),
        "model": str(given.model.resolve()),
        "num_steps": given.steps + given.warmup,
        "num_warmup": given.warmup,
        "seed": SEED,
        "num_threads": given.threads,
        "variables": {k: v for k, v in variables.items() if k.startswith(("MALLOC_", "GOMP_"))},
    }
    plan = json.loads(json.dumps(plan))
    file = folder / "plan.json"
    if given.resume and file.is_file():
        if json.loads(file.read_text()) != plan:
            raise SystemExit(f"--resume: {file} is of other options; leave --resume out")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "done").mkdir(parents=True)
        machine.run_module("prepare", [machine.written(folder / "new.json", plan)], variables)
        (folder / "new.json").rename(file)
    return Surroundings(
        case, folder, given.model.resolve(), given.steps + given.warmup, given.threads, variables
    )


def read_work(
    surroundings: Surroundings,
) -> tuple[Shape, dict[str, list[Work]], tuple[int, int]]:
    """Return the model's shape, the work of each step by rows file, and the size of a mean step."""
    raw = json.loads((surroundings.folder / "shape.json").read_text())
    shape = Shape(**raw)
    size, work = surroundings.case.batch_size, dict[str, list[Work]]()
    num_tokens = num_targets = 0
    for name in ("in_order", "grouped"):
        with (surroundings.folder / f"{name}.jsonl").open() as file:
            rows = [json.loads(line) for line in file]
        lengths = [len(row["input_ids"]) for row in rows]
        targets = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
        work[name] = []
        for start in range(0, len(rows), size):
            count = sum(targets[start : start + size])
            flops = step_flops(shape, lengths[start : start + size], count)
            work[name].append(Work(count, flops))
        if name == "in_order":
            num_tokens, num_targets = sum(lengths), sum(targets)
    return shape, work, (num_tokens // len(work["in_order"]), num_targets // len(work["in_order"]))


def announce(
    case: Case,
    systems: Sequence[System],
    work: Mapping[str, Sequence[Work]],
    speeds: Mapping[str, float],
    given: argparse.Namespace,
) -> None:
    """Print what is coming and how long it will take."""
    per_step = work["in_order"][0].flops / (max(speeds.values()) * 1e9)
    seconds = 0.0
    for system in systems:
        for column in system.columns:
            fraction = 0.75 if system.name == REFERENCE else _FRACTIONS[column]
            steps = (given.steps + given.warmup) * per_step / fraction
            seconds += _STARTS[system.environment] + steps
    speed = ", ".join(f"{name} {value:.0f}" for name, value in speeds.items())
    print(f"\ntable {case.name}: {case.title}")
    print(f"products: {speed} GFLOP/s; load average {os.getloadavg()[0]:.2f}")
    print(f"about {seconds * given.rounds / 60:.0f} minutes for {given.rounds} rounds", flush=True)


def take_turns(
    systems: Sequence[System], peers: Peers, surroundings: Surroundings, given: argparse.Namespace
) -> list[Run]:
    """Run every system once per round; runs that an earlier call finished are kept."""
    runs: list[Run] = []
    for number in range(1, given.rounds + 1):
        for system in systems:
            for column in system.columns:
                file = surroundings.folder / "done" / f"{system.name}-{column}-{number}.json"
                if not file.is_file() or Run.read(file).problem:
                    began = time.monotonic()
                    run = run_system(system, column, number, peers.python_of(system), surroundings)
                    run.write(file)
                    show(run, time.monotonic() - began, given.warmup)
                runs.append(Run.read(file))
    return runs


def finished_earlier(runs: Sequence[Run], folder: Path) -> list[Run]:
    """Return runs of systems that this call did not name and an earlier one measured."""
    named = {run.system for run in runs}
    done = [Run.read(file) for file in sorted((folder / "done").glob("*.json"))]
    return [run for run in done if run.system not in named]


def show(run: Run, seconds: float, num_warmup: int) -> None:
    if run.problem:
        print(f"  round {run.round}  {run.system:20} {run.column:7} {run.problem}", flush=True)
        return
    steps = [run.seconds_of(s) for s in range(num_warmup + 1, len(run.steps) + 1)]
    times = " ".join(f"{each:.2f}" for each in steps)
    print(
        f"  round {run.round}  {run.system:20} {run.column:7} {seconds:5.0f} s in all,"
        f" steps {times} s, {run.peak_rss_bytes / 1e9:.2f} GB",
        flush=True,
    )


def write_down(
    case: Case,
    facts: Mapping[str, Any],
    figures: Sequence[Figures],
    table: Table,
    shape: Shape,
    given: argparse.Namespace,
) -> None:
    """Print the table, and put it into the document and the results unless this was a rehearsal."""
    text = markdown.section(case.title, facts, figures)
    print(f"\n{text}")
    if given.quick:
        return
    raw = {
        **facts,
        "case": asdict(case),
        "shape": asdict(shape),
        "work": {name: [asdict(step) for step in steps] for name, steps in table.work.items()},
        "figures": [asdict(each) for each in figures],
        "runs": [{k: v for k, v in asdict(run).items() if k != "cpu"} for run in table.runs],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    out = RESULTS / f"compare-{case.name}.json"
    out.write_text(json.dumps(raw, indent=1) + "\n")
    document = DOCUMENT.read_text() if DOCUMENT.is_file() else markdown.HEADER
    DOCUMENT.write_text(markdown.placed(document, case.name, text))
    print(f"written to {DOCUMENT.relative_to(ROOT)} and {out.relative_to(ROOT)}")


def example_rows(folder: Path) -> Path:
    """Join the repository's example data, for a comparison without a file of one's own."""
    folder.mkdir(parents=True, exist_ok=True)
    joined = folder / "example-rows.jsonl"
    files = sorted((ROOT / "examples" / "data").glob("*.jsonl"))
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    return joined


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="JSONL chat rows (default: examples/data)")
    parser.add_argument(
        "--model", type=Path, default=ROOT / ".cache" / "models" / "smollm2-135m-instruct"
    )
    parser.add_argument("--table", choices=[*CASES, "all"], default="all")
    parser.add_argument("--systems", help="names separated by commas, or `all`")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each run")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--resume", action="store_true", help="keep runs that are done")
    parser.add_argument("--quick", action="store_true", help="2 steps, 1 round, no document")
    given = parser.parse_args()
    if given.quick:
        vars(given).update(_QUICK)
    if min(given.steps, given.warmup, given.rounds, given.threads) < 1:
        parser.error("--steps, --warmup, --rounds and --threads must be at least 1")
    if given.data is not None and not given.data.is_file():
        parser.error(f"--data: there is no file {given.data}")
    if not (given.model / "config.json").is_file():
        parser.error(f"--model: {given.model} is no model folder; `make demo` prepares the default")
    return given


if __name__ == "__main__":
    main()
